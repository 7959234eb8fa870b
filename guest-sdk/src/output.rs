//! What a tool answers when it has done its work.

/// An answer with binary attachments. A tool without attachments returns its value as it is.
///
/// ```
/// use estop_tool::{Output, ToolError};
///
/// #[derive(schemars::JsonSchema, serde::Serialize)]
/// struct Rendered {
///     pages: u32,
/// }
///
/// /// Render the report.
/// #[estop_tool::tool(read_only)]
/// fn render() -> Result<Output<Rendered>, ToolError> {
///     let pdf = b"%PDF-1.7".to_vec();
///     Ok(Output::new(Rendered { pages: 1 }).attach("report.pdf", "application/pdf", pdf))
/// }
///
/// assert_eq!(render().unwrap().attachments().len(), 1);
/// ```
// It must never implement `Serialize`: `Returned` has one implementation for values and one for this.
#[derive(Clone, Debug, PartialEq)]
pub struct Output<T> {
    value: T,
    attachments: Vec<Attachment>,
}

impl<T> Output<T> {
    pub(crate) fn of_parts(value: T, attachments: Vec<Attachment>) -> Self {
        Self { value, attachments }
    }

    /// An answer that has no attachments yet.
    pub fn new(value: T) -> Self {
        Self { value, attachments: Vec::new() }
    }

    /// Adds binary data. `media_type` is that of RFC 6838, for example `image/png`.
    #[must_use]
    pub fn attach(mut self, name: impl Into<String>, media_type: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        self.attachments.push(Attachment { name: name.into(), media_type: media_type.into(), data: data.into() });
        self
    }

    /// What the JSON output is made of.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// What was attached, in that order.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// The value and what was attached.
    pub fn into_parts(self) -> (T, Vec<Attachment>) {
        (self.value, self.attachments)
    }
}

/// Binary data beside the JSON output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// As a file would be called.
    pub name: String,
    /// RFC 6838, for example `image/png`.
    pub media_type: String,
    /// The bytes.
    pub data: Vec<u8>,
}

/// An answer as it leaves the component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// One JSON document.
    pub json: String,
    /// What was attached.
    pub attachments: Vec<Attachment>,
}
