# The everyday commands; `just` lists them. To install it: `pip install rust-just` or `cargo install just`.

_default:
    @just --list --unsorted

# Serve the API at http://127.0.0.1:4999, with its data in ./data
serve *ARGUMENTS:
    cargo run --release -p tenantry -- serve {{ ARGUMENTS }}

# Run any other command, as in `just tenantry check`
tenantry *ARGUMENTS:
    cargo run --release -p tenantry -- {{ ARGUMENTS }}

# Compile everything, as fast as possible
check:
    cargo check --workspace --all-targets

# Format the sources
format:
    cargo fmt --all

# Run the checks of CI that run no test
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# Run the tests of one crate whose names contain NAME, on files: `just test api a_tenant_keeps_an_admin`
test CRATE="" NAME="":
    cargo test {{ if CRATE == "" { "--workspace" } else { "-p " + CRATE } }} {{ NAME }}

# The same on PostgreSQL, S3 and Kafka
test-distributed CRATE="" NAME="": (services "up")
    eval "$(scripts/services.sh env)" && just test {{ CRATE }} {{ NAME }}

# Start, stop or show the services for tests: up, down, env, status
services COMMAND="status":
    scripts/services.sh {{ COMMAND }}

# Regenerate openapi.json after a change of the API
openapi:
    WRITE_OPENAPI=1 cargo test -p api --test it the_checked_in_specification_is_current

# Measure the program beside its machine (docs/PERFORMANCE.md)
bench *ARGUMENTS:
    cargo build --profile dist -p tenantry -p bench
    target/dist/bench {{ ARGUMENTS }}

# Run everything that must pass before a change is merged
ci:
    .ci/run
