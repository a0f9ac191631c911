//! The `strangler` binary.

use std::process::ExitCode;

use strangler::cli::environment::Environment;
use strangler::cli::ui::Ui;
use strangler::cli::{Arguments, report};

fn main() -> ExitCode {
    let mut ui = Ui::standard(Environment.no_color());
    let outcome = Arguments::read(std::env::args_os()).and_then(|arguments| {
        arguments.start_log(&mut ui);
        arguments.run(&mut ui)
    });
    report::finish(&mut ui, outcome).into()
}
