;; The drill's victim: a core module with one tool, which returns at once unless one of the markers is replaced.
;; START takes fields of a module (functions, a start function); REALLOC, CALL and POST take instructions at the
;; beginning of a function. A marker that is not replaced is a comment.
(core module $guest
  ;; Waits for ever in the host; sleeps for an hour in the host; whether this is only about `list-tools`.
  (import "host" "wait" (func $wait))
  (import "host" "sleep" (func $sleep))
  (import "host" "describing" (func $describing (result i32)))

  ;; The first page holds the constants below and, from 1024, the arguments of a call.
  (memory (export "memory") 1 256)
  (global $free (mut i32) (i32.const 1024))

  ;; list<spec>: where it is, and how many.
  (data (i32.const 0) "\10\00\00\00" "\01\00\00\00")
  ;; spec, 48 bytes, aligned to 4.
  (data (i32.const 16)
    "\80\00\00\00" "\06\00\00\00"                 ;; +0  name
    "\88\00\00\00" "\01\00\00\00"                 ;; +8  version
    "\90\00\00\00" "\05\00\00\00"                 ;; +16 description
    "\98\00\00\00" "\02\00\00\00"                 ;; +24 input-schema
    "\00\00\00\00" "\00\00\00\00" "\00\00\00\00"  ;; +32 output-schema: none
    "\00\00\00\00")                               ;; +44 hints: none set
  ;; result<output, failure>, 40 bytes, aligned to 4.
  (data (i32.const 64)
    "\00\00\00\00"                                ;; +0  ok
    "\a0\00\00\00" "\04\00\00\00"                 ;; +4  output.json
    "\00\00\00\00" "\00\00\00\00")                ;; +12 output.attachments: empty
  (data (i32.const 128) "victim")
  (data (i32.const 136) "0")
  (data (i32.const 144) "drill")
  (data (i32.const 152) "{}")
  (data (i32.const 160) "null")

  ;;START;;

  ;; Called for the arguments of `call` only. Never frees: an instance serves one call.
  (func (export "cabi_realloc")
    (param $old i32) (param $old-bytes i32) (param $align i32) (param $bytes i32) (result i32)
    (local $start i32)
    ;;REALLOC;;
    (local.set $start
      (i32.and
        (i32.sub (i32.add (global.get $free) (local.get $align)) (i32.const 1))
        (i32.sub (i32.const 0) (local.get $align))))
    (global.set $free (i32.add (local.get $start) (local.get $bytes)))
    (if (i32.gt_u (global.get $free) (i32.const 65536)) (then unreachable))
    (local.get $start))

  (func (export "list-tools") (result i32)
    (i32.const 0))

  (func (export "call")
    (param $name i32) (param $name-bytes i32) (param $input i32) (param $input-bytes i32) (result i32)
    (local $page i32)
    ;;CALL;;
    (i32.const 64))

  (func (export "post-call") (param $result i32)
    ;;POST;;
  )
)
