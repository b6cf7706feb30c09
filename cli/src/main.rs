//! The `unirl` command.

fn main() -> std::process::ExitCode {
    unirl_cli::main()
}
