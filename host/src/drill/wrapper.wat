;; Makes a core module that speaks the canonical ABI into a component that exports `estop:tool/tool@0.1.0`, with the
;; types of guest-sdk/wit/tool.wit and in the shape that a tool built with the SDK has. In a host that runs, live.wat takes
;; the place of what stands between the first marker and the second. The second marker stands for `(core module $guest …)`,
;; which imports the functions of `host` below and exports `memory`, `cabi_realloc`, `list-tools`, `call` and `post-call`.
(component
  (import "estop:tool/types@0.1.0" (instance $types
    (type $attachment' (record (field "name" string) (field "media-type" string) (field "data" (list u8))))
    (export "attachment" (type $attachment (eq $attachment')))
    (type $output' (record (field "json" string) (field "attachments" (list $attachment))))
    (export "output" (type (eq $output')))
    (type $failed'
      (record
        (field "code" string) (field "message" string) (field "retryable" bool) (field "data" (option string))))
    (export "failed" (type $failed (eq $failed')))
    (type $failure' (variant (case "invalid-input" string) (case "failed" $failed) (case "interrupted")))
    (export "failure" (type (eq $failure')))))
  (alias export $types "output" (type $output))
  (alias export $types "failure" (type $failure))

;;PROBE;;
  (import "estop:drill/probe@0.1.0" (instance $probe
    (export "wait" (func))
    (export "sleep" (func))
    (export "describing" (func (result bool)))))
  (core func $wait (canon lower (func $probe "wait")))
  (core func $sleep (canon lower (func $probe "sleep")))
  (core func $describing (canon lower (func $probe "describing")))
  (core instance $host
    (export "wait" (func $wait))
    (export "sleep" (func $sleep))
    (export "describing" (func $describing)))

;;GUEST;;

  (core instance $instance (instantiate $guest (with "host" (instance $host))))
  (alias core export $instance "memory" (core memory $memory))
  (alias core export $instance "cabi_realloc" (core func $realloc))

  (type $hints (flags "read-only" "destructive" "idempotent" "open-world"))
  (type $spec
    (record
      (field "name" string) (field "version" string) (field "description" string)
      (field "input-schema" string) (field "output-schema" (option string)) (field "hints" $hints)))
  (func $list-tools (result (list $spec))
    (canon lift (core func $instance "list-tools") (memory $memory)))
  (func $call (param "name" string) (param "input" string) (result (result $output (error $failure)))
    (canon lift (core func $instance "call") (memory $memory) (realloc $realloc)
      (post-return (core func $instance "post-call"))))

  ;; The types of an exported function are exported beside it, and the function is said to use those. Saying so takes
  ;; a component of its own.
  (component $interface
    (type $attachment' (record (field "name" string) (field "media-type" string) (field "data" (list u8))))
    (import "attachment" (type $attachment (eq $attachment')))
    (type $output' (record (field "json" string) (field "attachments" (list $attachment))))
    (import "output" (type $output (eq $output')))
    (type $failed'
      (record
        (field "code" string) (field "message" string) (field "retryable" bool) (field "data" (option string))))
    (import "failed" (type $failed (eq $failed')))
    (type $failure' (variant (case "invalid-input" string) (case "failed" $failed) (case "interrupted")))
    (import "failure" (type $failure (eq $failure')))
    (type $hints' (flags "read-only" "destructive" "idempotent" "open-world"))
    (import "hints" (type $hints (eq $hints')))
    (type $spec'
      (record
        (field "name" string) (field "version" string) (field "description" string)
        (field "input-schema" string) (field "output-schema" (option string)) (field "hints" $hints)))
    (import "spec" (type $spec (eq $spec')))
    (import "list-tools" (func $list-tools (result (list $spec))))
    (import "call" (func $call
      (param "name" string) (param "input" string) (result (result $output (error $failure)))))

    (export $exported-output "output" (type $output))
    (export $exported-failure "failure" (type $failure))
    (export $exported-hints "hints" (type $hints))
    (type $exported-spec'
      (record
        (field "name" string) (field "version" string) (field "description" string)
        (field "input-schema" string) (field "output-schema" (option string)) (field "hints" $exported-hints)))
    (export $exported-spec "spec" (type $spec) (type (eq $exported-spec')))
    (export "list-tools" (func $list-tools) (func (result (list $exported-spec))))
    (export "call" (func $call)
      (func (param "name" string) (param "input" string)
        (result (result $exported-output (error $exported-failure))))))
  (instance $tool (instantiate $interface
    (with "attachment" (type $types "attachment"))
    (with "output" (type $output))
    (with "failed" (type $types "failed"))
    (with "failure" (type $failure))
    (with "hints" (type $hints))
    (with "spec" (type $spec))
    (with "list-tools" (func $list-tools))
    (with "call" (func $call))))
  (export "estop:tool/tool@0.1.0" (instance $tool)))
