//! A chat as the text its model was trained on: the model's own Jinja template, rendered as transformers renders it.
//!
//! A template is a program from a stranger. It reads nothing but the messages, and its time and memory are bounded. Not
//! here: tools, documents, and pictures in messages.

mod functions;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use finegates_checkpoint::{ChatTemplates, quietly};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Template, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What a rendering may cost: about as many instructions, or 64 bytes of data each. Real templates need some
/// thousands for a chat of a hundred messages, and their text.
const FUEL: u64 = 1 << 17;
/// Fuel for each message, and for each two bytes of them: their text is copied, searched and joined a few times.
const FUEL_A_MESSAGE: u64 = 1 << 8;
/// Most bytes of all messages.
const MESSAGES_LIMIT_BYTES: usize = 4 << 20;
/// Most bytes of a template; the longest known ones have about half of it. Compiling one takes time that grows with the
/// square of its longest expression.
const TEMPLATE_LIMIT_BYTES: usize = 32 << 10;
/// The deepest nesting of what is rendered; a macro call counts for several. The library's own limit.
const RECURSION_LIMIT: usize = 500;
/// Stack for a template: the library walks expressions and values by recursion, however deep they are. Each byte of a template
/// may be a level of an expression; a level of a value costs at least 6 fuel. Pages are taken when they are touched.
const STACK_BYTES: usize = 64 << 20;
const STACK_BYTES_A_BYTE: usize = 2 << 10;
const STACK_BYTES_A_FUEL: usize = 640;

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of the chat.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// What else a rendering takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatOptions {
    /// End with the beginning of an answer, so that the model gives one.
    pub add_generation_prompt: bool,
    /// What templates take for the present; some write the date (in UTC). For the same text on another day, give the same time.
    pub now: SystemTime,
}

impl Default for ChatOptions {
    fn default() -> ChatOptions {
        ChatOptions { add_generation_prompt: true, now: SystemTime::now() }
    }
}

/// A chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    special_tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// The template of the model in `folder`, or the one of several that is called `name` (`default` without a name).
    ///
    /// # Errors
    /// When a file cannot be read, there is no such template, or it is no Jinja.
    pub fn open(folder: &Path, name: Option<&str>) -> Result<ChatTemplate, Error> {
        ChatTemplate::from_templates(ChatTemplates::read(folder)?, name)
    }

    /// As [`ChatTemplate::open`], of templates that were read already.
    ///
    /// # Errors
    /// When there is no such template, or it is no Jinja.
    pub fn from_templates(templates: ChatTemplates, name: Option<&str>) -> Result<ChatTemplate, Error> {
        let ChatTemplates { path, mut templates, special_tokens } = templates;
        let wanted = name.unwrap_or("default");
        let Some(index) = templates.iter().position(|(name, _)| name == wanted) else {
            let reason = if templates.is_empty() {
                "the model has none, so it was not trained to chat; give it a plain prompt, or name a template"
                    .to_owned()
            } else {
                let names: Vec<&str> = templates.iter().map(|(name, _)| name.as_str()).collect();
                format!("expected one of {}, found {}", brief(&names.join(", ")), brief(wanted))
            };
            return Err(Error::Chat { path, reason });
        };
        let template = ChatTemplate { path, source: templates.swap_remove(index).1, special_tokens };
        if template.source.len() > TEMPLATE_LIMIT_BYTES {
            let found = template.source.len();
            let reason = format!("expected at most {TEMPLATE_LIMIT_BYTES} bytes, found {found}");
            return Err(Error::Chat { path: template.path, reason });
        }
        template.run(SystemTime::UNIX_EPOCH, FUEL, |_| Ok(String::new()))?;
        Ok(template)
    }

    /// The template as the model's folder has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a chat. It has its special tokens already: encode it with
    /// [`Tokenizer::encode_bare`](finegates_checkpoint::Tokenizer::encode_bare).
    ///
    /// # Errors
    /// [`Error::Chat`] when the template refuses the messages (it says why), fails, or does more than it may.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, Error> {
        let size_bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        if size_bytes > MESSAGES_LIMIT_BYTES {
            let reason = format!("expected messages of at most {MESSAGES_LIMIT_BYTES} bytes, found {size_bytes}");
            return Err(Error::Chat { path: self.path.clone(), reason });
        }
        let fuel = FUEL + FUEL_A_MESSAGE * messages.len() as u64 + size_bytes as u64 / 2;
        self.run(options.now, fuel, |template| {
            let tokens = self.special_tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
            let given = [
                ("messages", Value::from(Serde(messages))),
                ("add_generation_prompt", Value::from(options.add_generation_prompt)),
                ("tools", Value::from(())),
                ("documents", Value::from(())),
            ];
            template.render(Value::from_pairs(tokens.chain(given)))
        })
    }

    /// Does something with the template, on a stack of its own that is deep enough for a hostile one.
    fn run(
        &self,
        now: SystemTime,
        fuel: u64,
        action: impl FnOnce(&Template<'_, '_>) -> Result<String, minijinja::Error> + Send,
    ) -> Result<String, Error> {
        let stack_bytes =
            STACK_BYTES + STACK_BYTES_A_BYTE * self.source.len() + STACK_BYTES_A_FUEL.saturating_mul(fuel as usize);
        let work = || {
            let source = self.prepared();
            let environment = environment(now, fuel);
            let rendered = environment.template_from_str(&source).and_then(|template| action(&template));
            rendered.map_err(|error| self.failed(&error))
        };
        let failed = |reason: &str| Error::Chat { path: self.path.clone(), reason: reason.to_owned() };
        std::thread::scope(|scope| {
            let guarded = move || quietly(AssertUnwindSafe(work));
            match std::thread::Builder::new().stack_size(stack_bytes).spawn_scoped(scope, guarded) {
                Ok(thread) => match thread.join() {
                    Ok(Ok(done)) => done,
                    _ => Err(failed("the template engine cannot work with it")),
                },
                Err(_) => Err(failed("not enough memory to run it")),
            }
        })
    }

    /// The source with transformers' own tag, which marks what an assistant said, as one that does nothing.
    fn prepared(&self) -> String {
        functions::without_generation_tags(&self.source)
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let place = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
        let reason = match (error.kind(), error.detail()) {
            (ErrorKind::OutOfFuel, _) => "it takes too much time or memory".to_owned(),
            (_, Some(detail)) => brief(detail),
            (kind, None) => brief(&kind.to_string()),
        };
        Error::Chat { path: self.path.clone(), reason: format!("{place}{reason}") }
    }
}

fn environment(now: SystemTime, fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    if let Ok(syntax) = syntax.build() {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(fuel));
    environment.set_recursion_limit(RECURSION_LIMIT);
    functions::add(&mut environment, now);
    environment
}

/// A stranger's words for a message: one line of at most 200 characters.
fn brief(text: &str) -> String {
    let mut short: String = text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(200).is_some() {
        short.push('…');
    }
    short
}
