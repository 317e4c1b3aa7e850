//! A server on this machine that speaks OpenAI's chat protocol, faults included.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A chat completion with this text.
    Text(String),
    /// A chat completion with a letter and the probability of A.
    Probability(f64),
    /// Any body with status 200.
    Body(String),
    /// A status, `Retry-After` and a message.
    Status(u16, Option<String>, String),
    /// The connection ends in the middle of the body.
    Cut,
    /// No answer for as long.
    Hang(Duration),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

impl Request {
    /// What the judge was asked at first, by which comparisons are told apart.
    pub fn question(&self) -> String {
        self.body["messages"][1]["content"].as_str().unwrap().to_owned()
    }

    /// Whether it asks again after a reply that was no verdict.
    pub fn is_reminder(&self) -> bool {
        self.body["messages"].as_array().unwrap().len() > 2
    }

    /// The text of answer A or B.
    pub fn answer(&self, letter: char) -> String {
        let text = self.question();
        let (open, close) = (format!("<answer_{letter}>\n"), format!("\n</answer_{letter}>"));
        text.split_once(&open).unwrap().1.split_once(&close).unwrap().0.to_owned()
    }
}

type Script = dyn Fn(usize, &Request) -> Answer + Send + Sync;

pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// A server that answers the n-th request, from 0, as the script says.
    pub fn new(script: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stopped) =
            (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let script: Arc<Script> = Arc::new(script);
        let thread = {
            let (requests, stopped) = (requests.clone(), stopped.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let (requests, script) = (requests.clone(), script.clone());
                    std::thread::spawn(move || serve(&stream.unwrap(), &requests, &*script));
                }
            })
        };
        Self { address, requests, stopped, listener: Some(thread) }
    }

    /// A judge that prefers the longer answer with this probability.
    pub fn likes_length(probability: f64) -> Self {
        Self::new(move |_, request| longer(request, probability))
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// The answer of a judge that prefers the longer answer.
pub fn longer(request: &Request, probability: f64) -> Answer {
    let is_longer = request.answer('A').len() > request.answer('B').len();
    Answer::Probability(if is_longer { probability } else { 1.0 - probability })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.listener.take().unwrap().join();
    }
}

fn serve(stream: &TcpStream, requests: &Mutex<Vec<Request>>, script: &Script) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    // A client that was killed leaves connections that say nothing.
    if reader.read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap()
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = Some(value.to_owned())
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = Request { path, authorization, body: serde_json::from_slice(&body).unwrap() };
    let number = {
        let mut requests = requests.lock().unwrap();
        requests.push(request.clone());
        requests.len() - 1
    };
    let ok = |body: &str| respond("200 OK", "", body, body.len());
    let response = match script(number, &request) {
        Answer::Text(text) => ok(&completion(&text, Value::Null)),
        Answer::Probability(a) => {
            let (letter, own) = if a >= 0.5 { ("A", a) } else { ("B", 1.0 - a) };
            let top = json!([{"token": "A", "logprob": a.ln()}, {"token": "B", "logprob": (1.0 - a).ln()}]);
            let token = json!({"token": letter, "logprob": own.ln(), "top_logprobs": top});
            ok(&completion(letter, json!({"content": [token]})))
        }
        Answer::Body(body) => ok(&body),
        Answer::Status(status, wait, message) => {
            let wait = wait.map(|wait| format!("Retry-After: {wait}\r\n")).unwrap_or_default();
            let body = json!({"error": {"message": message}}).to_string();
            respond(&format!("{status} Status"), &wait, &body, body.len())
        }
        Answer::Cut => respond("200 OK", "", &completion("A", Value::Null)[..20], 1000),
        Answer::Hang(time) => {
            std::thread::sleep(time);
            return;
        }
    };
    let _ = (&mut &*stream).write_all(response.as_bytes());
}

fn respond(status: &str, more: &str, body: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n{body}"
    )
}

/// A chat completion of 100 tokens in and 1 out.
pub fn completion(text: &str, logprobs: Value) -> String {
    let message = json!({"role": "assistant", "content": text, "refusal": null});
    let choice =
        json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101});
    json!({"id": "x", "object": "chat.completion", "model": "judge-2026", "choices": [choice], "usage": usage}).to_string()
}
