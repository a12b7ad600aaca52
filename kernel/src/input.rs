//! Lines that a cell asks of the user, by the stdin socket.

use crate::engine::Ask;
use crate::messages::{as_json, content};
use crate::outputs::Outputs;
use crate::sockets::{Guard, Read};
use crossbeam_channel::Sender;
use jupyter_protocol::JupyterMessage;
use jupyter_zmq_client::KernelStdinConnection;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often an unanswered question is looked at.
const PAUSE: Duration = Duration::from_millis(100);

struct Question {
    parent: JupyterMessage,
    prompt: String,
    password: bool,
    answer: Sender<String>,
}

/// Serves the stdin socket; the returned function asks. Without a front end that can answer
/// (`allow_stdin`), or after an interrupt, the answer is empty.
pub fn serve(mut stdin: KernelStdinConnection, mut guard: Guard, outputs: Outputs) -> Ask {
    let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
    let state = outputs.clone();
    tokio::spawn(async move {
        while let Some(question) = asked.recv().await {
            // What was answered to an earlier question that an interrupt ended.
            while let Ok(late) = tokio::time::timeout(Duration::from_millis(1), stdin.read()).await {
                if matches!(guard.sort(late), Read::Lost) {
                    return;
                }
            }
            let content = content("input_request", json!({"prompt": question.prompt, "password": question.password}));
            let mut value = None;
            if stdin.send(JupyterMessage::new(content, Some(&question.parent))).await.is_ok() {
                while value.is_none() && state.cell().interrupts == 0 {
                    let Ok(read) = tokio::time::timeout(PAUSE, stdin.read()).await else { continue };
                    match guard.sort(read) {
                        Read::Message(reply) => value = as_json(&reply)["value"].as_str().map(str::to_string),
                        Read::Dropped => {}
                        Read::Lost => return,
                    }
                }
            }
            let _ = question.answer.send(value.unwrap_or_default());
        }
    });
    Arc::new(move |prompt, password| {
        let Some(parent) = outputs.parent().filter(|parent| as_json(parent)["allow_stdin"].as_bool() == Some(true)) else { return String::new() };
        let (answer, answered) = crossbeam_channel::bounded(1);
        let _ = questions.send(Question { parent, prompt, password, answer });
        answered.recv().unwrap_or_default()
    })
}
