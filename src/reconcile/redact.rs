//! stub
#[derive(Debug, Default)]
pub struct Redactor;
impl Redactor {
    pub fn new() -> Self {
        Self
    }
}
