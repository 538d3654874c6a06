# What `.ci/run` and `.ci/soak` share; both source it.

logs=target/ci
tools=$PWD/target/tools/checks
# All that there is: the feature `kafka-tls` includes everything of the default build.
workspace=(--locked --workspace --features tenantry/kafka-tls)
durations=()

# Debian's packages and Rust's components that a machine may lack.
toolchain() {
    cargo fmt --version && cargo clippy --version || rustup component add rustfmt clippy
    # Node.js runs the official tus client in the tests; librdkafka is built with the others.
    if ! { node --version && npm --version && pkg-config --exists openssl && make --version && python3 -c 'import ensurepip'; } >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
            nodejs npm build-essential pkg-config libssl-dev python3-venv
    fi
    cargo --version
}

# The checkers, of fixed versions, as PyPI has them built.
install_tools() {
    cmp --quiet .ci/tools.txt "$tools/tools.txt" && return
    python3 -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --requirement .ci/tools.txt
    cp .ci/tools.txt "$tools/tools.txt"
}

# The services start beside what needs none of them.
begin_services() {
    scripts/services.sh up >"$logs/services" 2>&1 &
    services=$!
}

join_services() {
    local failed=0
    wait "$services" || failed=1
    cat "$logs/services"
    return $failed
}

end_services() {
    wait
    scripts/services.sh down
}

without_services() {
    (unset TEST_DATABASE_URL TEST_S3_ENDPOINT_URL TEST_KAFKA_BOOTSTRAP_SERVERS TEST_SECOND_KAFKA_BOOTSTRAP_SERVERS && "$@")
}

with_services() {
    local variables
    variables=$(scripts/services.sh env)
    (eval "$variables" && "$@")
}

# Crashes a program at every step of what must survive one, so many times on files.
embedded_crashes() {
    CRASH_RUNS=$1 without_services crashes a_crash 2>&1 | tee "$logs/embedded_crashes"
    count_hits "$logs/embedded_crashes"
}

# So many times on services, and so many times more at the steps that there are only here.
distributed_crashes() {
    {
        CRASH_RUNS=$1 with_services crashes a_crash
        CRASH_RUNS=$2 with_services crashes a_crash_in_an_upload a_crash_in_a_direct a_crash_while_provisioning_a_warm_database
    } 2>&1 | tee "$logs/distributed_crashes"
    count_hits "$logs/distributed_crashes"
}

# Runs the crash tests whose names contain one of these texts; each has to be in one.
crashes() {
    local name
    for name in "$@"; do
        grep --quiet --recursive --include='*.rs' "fn $name" crates/*/tests || { echo "no test is named $name…" && return 1; }
    done
    cargo test "${workspace[@]}" --test it -- --show-output "$@"
}

# How often each failpoint was hit. Tests that succeed keep what they print to themselves, unless they are asked.
count_hits() {
    grep -oE '^[a-z_.]+: hit once' "$1" | sort | uniq -c | awk '{ print "  " $2 " " $1 " times" }'
}

# Runs a command under a heading and records how long it took.
section() {
    local name=$1 begin=$SECONDS line
    shift
    printf '\n=== %s\n' "$name"
    "$@"
    printf -v line '%5d s  %s' $((SECONDS - begin)) "$name"
    durations+=("$line")
    echo "$line"
}

# The durations, and after them the test runner's own results of the logs that are named.
summary() {
    local bound=$1 log
    shift
    printf '\n=== durations\n'
    printf '%s\n' "${durations[@]}"
    printf '%5d s  in all, of %d s\n' "$SECONDS" "$bound"
    for log in "$@"; do
        printf '\n=== tests, %s\n' "${log//_/ }"
        grep -E '^ +(Running|Doc-tests) |^test result:' "$logs/$log"
    done
}
