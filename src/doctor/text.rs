//! The report for a terminal.

use std::fmt::Write as _;

use super::judge::{Belongs, DatabaseReport, Object};

/// Every object on a line, by database; `problems` renders what is wrong in one of them.
#[must_use]
pub fn text(reports: &[DatabaseReport], problems: impl Fn(&DatabaseReport) -> String) -> String {
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(text, "{}", report.database);
        if let Some(reason) = &report.unread {
            let _ = writeln!(text, "  not read: {reason}");
        } else if report.objects.is_empty() {
            let _ = writeln!(text, "  nothing of ours");
        }
        let names = report.objects.iter().map(|object| object.name.chars().count()).max().unwrap_or(0);
        for object in &report.objects {
            line(&mut text, object, names);
        }
        let wrong = problems(report);
        let _ = writeln!(text, "{}{}", if wrong.is_empty() { "" } else { "\n" }, wrong);
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn line(text: &mut String, object: &Object, names: usize) {
    let whose = match &object.belongs {
        Belongs::Slice(slice) => format!("slice {slice}"),
        Belongs::Database => "every slice here".to_owned(),
        Belongs::OtherPlan(plan) => format!("plan {plan}"),
        Belongs::Nobody => "nobody".to_owned(),
        Belongs::Unknown => "not known".to_owned(),
    };
    let _ = writeln!(
        text,
        "  {:<11}  {:<names$}  {whose:<18}  {}",
        object.kind.as_str(),
        object.name,
        object.detail
    );
}
