#!/bin/sh
# Verifies an evidence bundle of estop without estop: with sha256sum, jq, sqlite3, openssl (3 or later), sh and GNU's coreutils.
#
#   sh verify.sh [--key PEM] [--checkpoints FILE] [FOLDER]
#
# FOLDER is the bundle; the folder of this script if none is named. --key: the public key that has to have signed, kept from
# an earlier day. --checkpoints: checkpoints that were kept elsewhere; the log has to have what they cover.
#
# It says the first thing that is wrong and ends with 1. A script that comes with what it verifies proves little: compare it
# with one from elsewhere, or read it.
set -eu
LC_ALL=C
export LC_ALL
umask 077

usage() {
    echo "usage: sh verify.sh [--key PEM] [--checkpoints FILE] [FOLDER]" >&2
    exit 2
}

fail() {
    printf 'verify: FAILED: %s\n' "$*" >&2
    exit 1
}

absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

pinned='' kept='' folder=''
while [ $# -gt 0 ]; do
    case $1 in
        --key) [ $# -ge 2 ] || usage; pinned=$(absolute "$2"); shift 2 ;;
        --checkpoints) [ $# -ge 2 ] || usage; kept=$(absolute "$2"); shift 2 ;;
        -*) usage ;;
        *) [ -z "$folder" ] || usage; folder=$1; shift ;;
    esac
done
for tool in sha256sum jq sqlite3 openssl mktemp base64 split seq paste sort comm cut head tail wc tr rm mkdir dirname; do
    command -v "$tool" >/dev/null || { echo "verify: $tool is not here" >&2; exit 2; }
done
[ -n "$folder" ] || folder=$(dirname "$0")
cd "$folder" || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' HUP INT TERM

# The number of the first line in which two files differ.
difference() {
    number=0
    while :; do
        number=$((number + 1))
        ended=0
        IFS= read -r left <&3 || ended=1
        IFS= read -r right <&4 || ended=$((ended + 1))
        if [ "$ended" -gt 0 ] || [ "$left" != "$right" ]; then break; fi
    done 3<"$1" 4<"$2"
    echo "$number"
}

same() {
    [ "$(sha256sum <"$1")" = "$(sha256sum <"$2")" ]
}

# Base64 of so many letters, written in the only way in which its bytes are.
canonical() {
    [ "${#1}" -eq "$2" ] && [ "$(printf %s "$1" | base64 -d 2>/dev/null | base64 -w 0)" = "$1" ]
}

# Whether this key has made this signature over $work/statement. Before the key's 32 bytes stands what says Ed25519.
signed() {
    canonical "$1" 44 && canonical "$2" 88 || return 1
    { printf '\060\052\060\005\006\003\053\145\160\003\041\000'; printf %s "$1" | base64 -d; } >"$work/key"
    printf %s "$2" | base64 -d >"$work/signature"
    openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/key" -rawin -in "$work/statement" \
        -sigfile "$work/signature" >/dev/null 2>&1
}

# The public key in a PEM file, as the log has it.
public_key() {
    openssl pkey -pubin -in "$1" -outform DER 2>/dev/null | tail -c 32 | base64 -w 0
}

# ---- What the bundle consists of, and that the home's key has signed it.

for file in SHA256SUMS bundle.json log.jsonl log.db checkpoints.jsonl drills.jsonl report.md verify.sh keys/1.pem; do
    { [ -f "$file" ] && [ ! -L "$file" ]; } || fail "$file is missing"
done
fields='home:.home,first:.first,last:.last,sha256:.sha256,key:.key,signature:.signature'
jq -c "{bundle:(.bundle|{$fields})}" bundle.json >"$work/bundle" 2>/dev/null || fail "bundle.json cannot be read"
same bundle.json "$work/bundle" || fail "bundle.json was changed: something else stands in it"
field() { jq -r ".bundle.$1" bundle.json; }
home=$(field home) first=$(field first) last=$(field last) key=$(field key)
[ "$(sha256sum <SHA256SUMS | cut -c 1-64)" = "$(field sha256)" ] || fail "SHA256SUMS is not the one that bundle.json signs"
printf 'estop log bundle\nhome %s\nfirst %s\nlast %s\nsha256 %s\n' "$home" "$first" "$last" "$(field sha256)" \
    >"$work/statement"
signed "$key" "$(field signature)" || fail "bundle.json: its signature is wrong"
case $first$last in *[!0-9]*) fail "bundle.json: its lines have no numbers" ;; esac

for file in * .[!.]* ..?* keys/* keys/.[!.]* halts/* halts/.[!.]*; do
    if [ ! -e "$file" ] && [ ! -L "$file" ]; then continue; fi
    case $file in
        SHA256SUMS | bundle.json) continue ;;
        keys | halts) if [ -d "$file" ] && [ ! -L "$file" ]; then continue; fi ;;
    esac
    { [ -f "$file" ] && [ ! -L "$file" ]; } || fail "$file does not belong to the bundle"
    printf '%s\n' "$file"
done >"$work/files"
sort "$work/files" >"$work/there"
cut -c 67- SHA256SUMS | sort >"$work/named"
extra=$(comm -23 "$work/there" "$work/named" | head -n 1)
[ -z "$extra" ] || fail "$extra does not belong to the bundle"
missing=$(comm -13 "$work/there" "$work/named" | head -n 1)
[ -z "$missing" ] || fail "$missing is missing"
sha256sum -c --quiet --strict SHA256SUMS >"$work/sums" 2>/dev/null ||
    fail "$(head -n 1 "$work/sums" | cut -d : -f 1) is not as it was exported"

# ---- The log: every line in its place.

[ "$(tail -c 1 log.jsonl | base64)" = Cg== ] || fail "log.jsonl is cut: it does not end with a newline"
head -n -1 log.jsonl >"$work/lines"
count=$(wc -l <"$work/lines" | tr -d ' ')
[ "$count" -gt 0 ] || fail "log.jsonl has no entries"
# One file for each line, as many at a time as a command can be given.
mkdir "$work/split"
split -l 10000 -a 5 -d "$work/lines" "$work/part."
: >"$work/hashes"
for part in "$work"/part.*; do
    (cd "$work/split" && split -l 1 -a 5 -d "$part" line. && sha256sum line.* | cut -c 1-64 >>"$work/hashes" && rm line.*) ||
        fail "log.jsonl cannot be taken apart; is there room in $work?"
    rm "$part"
done
jq -rR '(fromjson? // {}) | if type == "object" then "\(.seq) \(.prev)" else "-" end' "$work/lines" >"$work/found"
before=$(head -n 1 "$work/found" | cut -d ' ' -f 2)
if [ "$first" -eq 1 ]; then before=0000000000000000000000000000000000000000000000000000000000000000; fi
{ echo "$before"; head -n -1 "$work/hashes"; } >"$work/prevs"
[ "$((last - first + 1))" -eq "$count" ] ||
    fail "log.jsonl has $count entries, and the bundle is about the lines $first to $last"
seq "$first" "$last" | paste -d ' ' - "$work/prevs" >"$work/expected"
same "$work/expected" "$work/found" ||
    fail "log.jsonl: entry $(difference "$work/expected" "$work/found") does not fit to the one before it"

# ---- The log: every signature, each by the key that had the right to.

jq -rR 'fromjson | select(.kind == "checkpoint" or .kind == "key-rotated" or .kind == "pruned")
    | [.seq, .prev, .kind, .home, .covers // 0, .sha256, .key, .next // "-", .signature, .first // 0] | join(" ")' \
    "$work/lines" >"$work/signatures" || fail "log.jsonl: an entry cannot be read"
current='' signatures=0 begins=$first
: >"$work/keys"
by() {
    [ -z "$current" ] || [ "$1" = "$current" ] || fail "$2: signed by the key $1, and no entry says that it took over"
    [ "$1" = "$current" ] || printf '%s\n' "$1" >>"$work/keys"
    current=$1
}
# So that a log that was pruned begins with what vouches for the rest.
if [ "$first" -gt 1 ]; then
    kind=$(head -n 1 "$work/lines" | jq -r .kind)
    [ "$kind" = checkpoint ] || fail "log.jsonl: it begins with line $first, which is no checkpoint: lines before it are missing"
fi
while read -r seq prev kind about covers sha256 signer next signature left; do
    at="log.jsonl: line $seq"
    [ "$about" = "$home" ] || fail "$at: it is about another home"
    by "$signer" "$at"
    case $kind in
        pruned)
            printf 'estop log pruning\nhome %s\nfirst %s\nsha256 %s\n' "$home" "$left" "$sha256" >"$work/statement"
            if [ "$left" -eq "$first" ]; then begins=1; fi
            ;;
        *)
            { [ "$((covers + 1))" -eq "$seq" ] && [ "$sha256" = "$prev" ]; } || fail "$at: it covers another line"
            if [ "$kind" = checkpoint ]; then
                printf 'estop log checkpoint\nhome %s\ncovers %s\nsha256 %s\n' "$home" "$covers" "$sha256"
            else
                printf 'estop log rotation\nhome %s\ncovers %s\nsha256 %s\nnext %s\n' "$home" "$covers" "$sha256" "$next"
            fi >"$work/statement"
            ;;
    esac
    signed "$signer" "$signature" || fail "$at: its signature is wrong"
    signatures=$((signatures + 1))
    if [ "$kind" = key-rotated ]; then
        current=$next
        printf '%s\n' "$next" >>"$work/keys"
    fi
done <"$work/signatures"

tail -n 1 log.jsonl >"$work/end"
jq -c "{export:(.export|{$fields})}" "$work/end" >"$work/rewritten" 2>/dev/null || fail "log.jsonl: its end cannot be read"
same "$work/end" "$work/rewritten" || fail "log.jsonl: its end was changed"
end() { jq -r ".export.$1" "$work/end"; }
head_hash=$(tail -n 1 "$work/hashes")
[ "$(end home) $(end first) $(end last) $(end sha256)" = "$home $first $last $head_hash" ] ||
    fail "log.jsonl: its end is about other lines"
by "$(end key)" "log.jsonl: its end"
printf 'estop log export\nhome %s\nfirst %s\nlast %s\nsha256 %s\n' "$home" "$first" "$last" "$head_hash" >"$work/statement"
signed "$current" "$(end signature)" || fail "log.jsonl: the signature of its end is wrong"
[ "$key" = "$current" ] || fail "bundle.json: it is signed by the key $key, and the log by $current"
[ "$begins" -eq 1 ] || echo "verify: NOTE: lines before $first were removed, and no entry here says where they are" >&2

# ---- What was taken from the log is in it.

for kind in checkpoint drill; do
    jq -rR "select(fromjson.kind == \"$kind\")" "$work/lines" >"$work/$kind"
    same "${kind}s.jsonl" "$work/$kind" || fail "${kind}s.jsonl does not have what the log has"
done
[ "$(sqlite3 -batch -readonly -init /dev/null log.db 'PRAGMA integrity_check' 2>/dev/null)" = ok ] ||
    fail "log.db is damaged"
sqlite3 -batch -readonly -init /dev/null log.db 'SELECT line FROM log ORDER BY seq' >"$work/rows" 2>/dev/null ||
    fail "log.db cannot be read"
same "$work/rows" "$work/lines" || fail "log.db: row $(difference "$work/lines" "$work/rows") is not what the log has"
[ "$(sqlite3 -batch -readonly -init /dev/null log.db 'SELECT min(seq), max(seq), count(*) FROM log' 2>&1)" = "$first|$last|$count" ] ||
    fail "log.db: its rows have other numbers"
number=0
while read -r used; do
    number=$((number + 1))
    [ -f "keys/$number.pem" ] && [ "$(public_key "keys/$number.pem")" = "$used" ] ||
        fail "keys/$number.pem is not the key that the log was signed with"
done <"$work/keys"
[ ! -e "keys/$((number + 1)).pem" ] || fail "keys/$((number + 1)).pem has signed nothing in the log"
for file in halts/halt-*.json; do
    [ -e "$file" ] || continue
    [ "halts/$(jq -r .halt "$file" 2>/dev/null).json" = "$file" ] || fail "$file is about another halt"
done
jq -rn 'reduce inputs as $entry ({};
    if $entry.kind == "halt" and $entry.latched then .[$entry.halt] = 1
    elif $entry.kind == "lift" then delpaths([[$entry.halt]]) else . end) | keys[]' "$work/lines" >"$work/halts"
while read -r halt; do
    [ -e "halts/$halt.json" ] || echo "verify: NOTE: the log does not say that $halt was lifted, and it was not in force" >&2
done <"$work/halts"

# ---- What was kept elsewhere.

if [ -n "$kept" ]; then
    jq -r '[.home, .covers, .sha256, .key, .signature] | join(" ")' "$kept" >"$work/kept" || fail "$kept cannot be read"
    [ -s "$work/kept" ] || fail "$kept has no checkpoints"
    while read -r about covers sha256 signer signature; do
        at="the kept checkpoint over line $covers"
        printf 'estop log checkpoint\nhome %s\ncovers %s\nsha256 %s\n' "$about" "$covers" "$sha256" >"$work/statement"
        signed "$signer" "$signature" || fail "$at: its signature is wrong"
        [ "$about" = "$home" ] || fail "$at: it is about another home"
        [ "$covers" -le "$last" ] || fail "$at: the log ends before it: its end was removed"
        if [ "$covers" -ge "$first" ]; then
            hash=$(tail -n "+$((covers - first + 1))" "$work/hashes" | head -n 1)
        elif [ "$((covers + 1))" -eq "$first" ]; then
            hash=$before
        else
            echo "verify: NOTE: $at is about lines that are not in the bundle" >&2
            continue
        fi
        [ "$hash" = "$sha256" ] || fail "$at: the log has another line there: it was written anew"
    done <"$work/kept"
fi
if [ -n "$pinned" ]; then
    wanted=$(public_key "$pinned") found=''
    while read -r used; do
        if [ "$used" = "$wanted" ]; then found=yes; fi
    done <"$work/keys"
    [ -n "$found" ] || fail "the key of $pinned has not signed anything in the log"
fi

echo "verified: $home, lines $first to $last, each in its place; $signatures signatures and the bundle's own"
if [ -n "$pinned" ]; then
    echo "signed by the key you gave, or one that it handed over to ($key)"
else
    echo "signed by the key $key; whether that is the right one is for you to know: --key PEM compares it with one you kept"
fi
