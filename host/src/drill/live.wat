
  ;; What the drill's victim finds in a host that runs: functions of the drill's names, made of what every component gets.
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (export "pollable" (type $due (eq $pollable)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $due))))))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core module $probe
    (import "host" "block" (func $block (param i32)))
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    ;; An hour, in nanoseconds.
    (func $sleep (call $block (call $subscribe (i64.const 3600000000000))))
    (export "wait" (func $sleep))
    (export "sleep" (func $sleep))
    (func (export "describing") (result i32) (i32.const 0)))
  (core instance $host (instantiate $probe
    (with "host" (instance (export "block" (func $block)) (export "subscribe" (func $subscribe))))))

