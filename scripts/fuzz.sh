#!/usr/bin/env bash
# Fuzzes the API of a program: schemathesis calls every operation of its specification in every way that it can think of, with
# every check that it has, and no answer may differ from what the specification says. Then it is proved that the calls went
# deep: every operation must have succeeded at least once.
set -euo pipefail

usage='usage: fuzz.sh PROGRAM [EXAMPLES [SEED]]
  PROGRAM   the tenantry to fuzz
  EXAMPLES  how many calls of every operation the fuzzing and stateful phases make (100)
  SEED      repeats a run (2026)
Over SQLite, or over DATABASE_URL, whose database should be empty; with objects as files, or where S3_* says.'

schemathesis_version=4.32.5
root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/target/tools/schemathesis-$schemathesis_version

main() {
    [[ $# -ge 1 ]] || fail "$usage"
    local program examples=${2-100} seed=${3-2026}
    program=$(realpath "$1")
    [[ -x $tools/bin/schemathesis ]] || install_schemathesis

    directory=$(mktemp -d "${TMPDIR:-/tmp}/tenantry-fuzz.XXXXXX")
    trap 'stop; rm -rf "$directory"' EXIT
    start "$program"
    local failed=0
    export SCHEMATHESIS_HOOKS=$root/scripts/fuzz_hooks.py TENANTRY_URL=$url TENANTRY_ANSWERS=$directory/answers
    (cd "$directory" && timeout 600 "$tools/bin/schemathesis" --config-file "$root/scripts/fuzz.toml" --no-color \
        run "$url/openapi.json" --checks all --max-examples "$examples" --seed "$seed") || failed=1
    check_answers || failed=1
    check_log || failed=1
    return $failed
}

install_schemathesis() {
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$schemathesis_version"
}

# Starts the program on a port that the system chooses, and waits until it listens.
start() {
    : >"$directory/log"
    (cd "$directory" && exec env PORT=0 MAX_UPLOAD_BYTES=5GiB RATE_LIMIT_ENABLED=false TENANTS_PER_USER=100000 \
        LOG_LEVEL="${LOG_LEVEL-warn,tenantry=info}" LOG_FORMAT=json "$1" serve 2>>"$directory/log") &
    server=$!
    for _ in {1..300}; do
        url=$(sed -n 's/.*listening on \(http[^ ]*\): .*/\1/p' "$directory/log")
        [[ -z $url ]] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    fail "the program does not start: $(<"$directory/log")"
}

stop() {
    if [[ -n ${server-} ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" || true
    fi
}

# Shows how often every operation was answered by which status; fails when one never succeeded, or any failed on our side.
check_answers() {
    awk -F '\t' -v s3="${S3_BUCKET-}" '
        { class = substr($2, 1, 1); count[$1, class] += $3; operations[$1] }
        END {
            for (operation in operations) {
                verdict = count[operation, 5] ? "FAILED ON OUR SIDE" : count[operation, 2] ? "" : "NEVER SUCCEEDED"
                # On S3 the URLs are the store'"'"'s.
                if (s3 && operation ~ "/api/objects/" && verdict == "NEVER SUCCEEDED") verdict = ""
                if (verdict) bad = 1
                printf "%-66s %6d %6d %6d %6d  %s\n", operation, count[operation, 2], count[operation, 3], count[operation, 4], count[operation, 5], verdict | "sort -k2"
            }
            close("sort -k2")
            exit bad || !length(operations)
        }' "$directory/answers"
}

# An answer may hide what the log shows.
check_log() {
    ! grep -E '"level":"ERROR"|panicked' "$directory/log"
}

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

main "$@"
