# What one does daily. `just` lists it; to have it: `pip install rust-just` or `cargo install just`.

_default:
    @just --list --unsorted

# Serve the API at http://127.0.0.1:4999, with its data in ./data
serve *ARGUMENTS:
    cargo run --release -p tenantry -- serve {{ ARGUMENTS }}

# Run any other command, as in `just tenantry check`
tenantry *ARGUMENTS:
    cargo run --release -p tenantry -- {{ ARGUMENTS }}

# Compile everything, as fast as that goes
check:
    cargo check --workspace --all-targets

# Format the sources
format:
    cargo fmt --all

# Find what CI would refuse without running a test
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# Run the tests of one crate whose names contain NAME, on files: `just test api a_viewer`
test CRATE="" NAME="":
    cargo test {{ if CRATE == "" { "--workspace" } else { "-p " + CRATE } }} {{ NAME }}

# The same on PostgreSQL, S3 and Kafka
test-distributed CRATE="" NAME="": (services "up")
    eval "$(scripts/services.sh env)" && just test {{ CRATE }} {{ NAME }}

# Start, stop or show the services for tests: up, down, env, status
services COMMAND="status":
    scripts/services.sh {{ COMMAND }}

# Write openapi.json anew, after a change of the API
openapi:
    cargo run -p tenantry -- openapi > openapi.json

# Measure the program beside its machine (docs/PERFORMANCE.md)
bench *ARGUMENTS:
    cargo build --profile dist -p tenantry -p bench
    target/dist/bench {{ ARGUMENTS }}

# Everything that must hold before a change is taken
ci:
    .ci/run
