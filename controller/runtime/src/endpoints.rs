//! A client of an API server of several members: it speaks to one of them and goes on to the next
//! when that one can't be reached or has no leader.
//!
//! Every member has a connection pool of its own, so what runs on one that is left may end by
//! itself. A member that is cut off or stopped is noticed by HTTP/2 pings within seconds. What
//! surely was not sent, and what only reads, is sent anew to another member; a write that may have
//! arrived is not.

use http::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use parking_lot::Mutex;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;
use tower::{BoxError, ServiceExt};

/// The name that the certificates of all members carry.
pub const SERVER_NAME: &str = "kubernetes";

/// For a connection with its TLS handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// Between two pings, and for their answer.
const PING: Duration = Duration::from_secs(3);
/// A member that refuses this often in a row for want of a leader is left.
const REFUSALS: u32 = 2;

/// Makes a client of one member.
type Make = Box<dyn Fn(&str) -> Result<kube::Client, kube::Error> + Send + Sync>;

/// The members' API servers, the one in use among them; clones are the same.
#[derive(Clone)]
pub struct Endpoints {
    shared: Arc<Shared>,
}

struct Shared {
    make: Make,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In the order in which they are tried; never empty.
    list: Vec<Endpoint>,
    current: usize,
    refusals: u32,
}

struct Endpoint {
    url: String,
    /// Told at the start, so never forgotten.
    given: bool,
    client: Option<kube::Client>,
}

impl Endpoints {
    /// Speaks to the members at these URLs with the identity and trust of `config`, whose own URL
    /// does not count. Their certificates are checked for [`SERVER_NAME`].
    ///
    /// # Errors
    /// If keys or certificates can't be read, or no URL is given.
    pub fn new(config: kube::Config, urls: &[String]) -> Result<Self, kube::Error> {
        // Faults of the configuration show now, not at the first request.
        let first = urls.first().ok_or_else(|| kube::Error::Service("no API server".into()))?;
        member_client(&config, first)?;
        Ok(Self::over(urls, Box::new(move |url| member_client(&config, url))))
    }

    fn over(urls: &[String], make: Make) -> Self {
        let endpoint = |url: &String| Endpoint { url: url.clone(), given: true, client: None };
        let mut list: Vec<Endpoint> = Vec::new();
        for url in urls {
            if list.iter().all(|e| e.url != *url) {
                list.push(endpoint(url));
            }
        }
        let state = State { list, ..State::default() };
        Endpoints { shared: Arc::new(Shared { make, state: Mutex::new(state) }) }
    }

    /// Learns which members there are, in place of what was learned before. The one in use stays in
    /// use.
    pub fn learn(&self, urls: &[String]) {
        self.shared.state.lock().learn(urls);
    }

    /// All URLs, those given at the start first.
    pub fn urls(&self) -> Vec<String> {
        self.shared.state.lock().list.iter().map(|e| e.url.clone()).collect()
    }

    /// A client that speaks to whichever member answers.
    pub fn client(&self) -> kube::Client {
        let endpoints = self.clone();
        let send = move |request| {
            let endpoints = endpoints.clone();
            async move { endpoints.send(request).await }
        };
        kube::Client::new(tower::service_fn(send), "default")
    }

    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let mut left = self.shared.state.lock().list.len();
        loop {
            left = left.saturating_sub(1);
            let (url, client) = self.current()?;
            let copy = copy_of(&request);
            match client.send(request).await {
                Ok(answer) => {
                    self.shared.state.lock().answered(&url, answer.status());
                    return Ok(answer);
                }
                Err(error) => {
                    self.shared.state.lock().leave(&url);
                    tracing::info!(url, error = chain(&error), "an API server does not answer");
                    match copy.filter(|copy| left > 0 && may_repeat(copy.method(), &error)) {
                        Some(copy) => request = copy,
                        None => return Err(error),
                    }
                }
            }
        }
    }

    fn current(&self) -> Result<(String, kube::Client), kube::Error> {
        let mut state = self.shared.state.lock();
        let at = state.current;
        let endpoint = state.list.get_mut(at).ok_or_else(|| kube::Error::Service("none".into()))?;
        let client = match &endpoint.client {
            Some(client) => client.clone(),
            None => endpoint.client.insert((self.shared.make)(&endpoint.url)?).clone(),
        };
        Ok((endpoint.url.clone(), client))
    }
}

impl State {
    fn learn(&mut self, urls: &[String]) {
        let in_use = self.list.get(self.current).map(|e| e.url.clone());
        let stays =
            |e: &Endpoint| e.given || urls.contains(&e.url) || Some(&e.url) == in_use.as_ref();
        self.list.retain(stays);
        for url in urls {
            if self.list.iter().all(|e| e.url != *url) {
                self.list.push(Endpoint { url: url.clone(), given: false, client: None });
            }
        }
        let at = self.list.iter().position(|e| Some(&e.url) == in_use.as_ref());
        self.current = at.unwrap_or(0);
    }

    /// A member answered; one that refuses again and again has no leader.
    fn answered(&mut self, url: &str, status: StatusCode) {
        if status != StatusCode::SERVICE_UNAVAILABLE {
            self.refusals = 0;
            return;
        }
        self.refusals += 1;
        if self.refusals >= REFUSALS {
            self.leave(url);
        }
    }

    /// Goes on to the next, unless somebody else has done so.
    fn leave(&mut self, url: &str) {
        if self.list.get(self.current).is_some_and(|e| e.url == url) {
            self.current = (self.current + 1) % self.list.len();
            self.refusals = 0;
        }
    }
}

/// The request once more, if its body is at hand.
fn copy_of(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn may_repeat(method: &Method, error: &kube::Error) -> bool {
    matches!(*method, Method::GET | Method::HEAD) || was_not_sent(error)
}

/// Whether no connection came about.
fn was_not_sent(error: &kube::Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        next = cause.source();
    }
    false
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A client of one member alone. Requests name [`SERVER_NAME`]; the connection goes to `url`.
fn member_client(config: &kube::Config, url: &str) -> Result<kube::Client, kube::Error> {
    let to: Uri = url.parse().map_err(|e| kube::Error::Service(format!("{url}: {e}").into()))?;
    let mut config = config.clone();
    config.cluster_url = Uri::from_static("https://kubernetes");
    // The next member is tried instead.
    config.default_retry = false;
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PING));
    let dialled = tcp.map_request(move |_: Uri| to.clone());
    let https = hyper_rustls::HttpsConnector::from((dialled, tls));
    let connector = tower::service_fn(move |uri: Uri| {
        let https = https.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT, https.oneshot(uri)).await {
                Ok(connected) => connected,
                Err(_) => Err(BoxError::from("connecting took too long")),
            }
        })
    });
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .build::<_, Body>(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(kube::Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// What the members answer: a status, or no answer at all.
    type Script = Arc<Mutex<HashMap<String, Option<u16>>>>;

    fn members(script: &[(&str, Option<u16>)]) -> (Endpoints, Script, Arc<Mutex<Vec<String>>>) {
        let urls: Vec<String> = script.iter().map(|(url, _)| (*url).to_owned()).collect();
        let script: HashMap<_, _> = script.iter().map(|(u, s)| ((*u).to_owned(), *s)).collect();
        let script = Arc::new(Mutex::new(script));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answers, log) = (script.clone(), asked.clone());
        let make = move |url: &str| {
            let (url, answers, log) = (url.to_owned(), answers.clone(), log.clone());
            let send = move |_: Request<Body>| {
                log.lock().push(url.clone());
                let answer = answers.lock().get(&url).copied().flatten();
                async move {
                    let code = answer.ok_or_else(|| BoxError::from("broken off"))?;
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::from_u16(code).unwrap();
                    Ok::<_, BoxError>(response)
                }
            };
            Ok(kube::Client::new(tower::service_fn(send), "default"))
        };
        (Endpoints::over(&urls, Box::new(make)), script, asked)
    }

    fn request(method: Method) -> Request<Body> {
        Request::builder().method(method).uri("/api").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn a_read_goes_round_and_stays_where_it_was_answered() {
        let (endpoints, _, asked) = members(&[("a", None), ("b", None), ("c", Some(200))]);
        let client = endpoints.client();
        for _ in 0..2 {
            assert_eq!(client.send(request(Method::GET)).await.unwrap().status(), 200);
        }
        assert_eq!(*asked.lock(), ["a", "b", "c", "c"]);
    }

    #[tokio::test]
    async fn a_write_that_may_have_arrived_is_not_repeated() {
        let (endpoints, _, asked) = members(&[("a", None), ("b", Some(201))]);
        let client = endpoints.client();
        assert!(client.send(request(Method::POST)).await.is_err());
        assert_eq!(*asked.lock(), ["a"]);
        assert_eq!(client.send(request(Method::POST)).await.unwrap().status(), 201);
        assert_eq!(*asked.lock(), ["a", "b"]);
    }

    #[tokio::test]
    async fn nobody_answers() {
        let (endpoints, script, asked) = members(&[("a", None), ("b", None)]);
        assert!(endpoints.client().send(request(Method::GET)).await.is_err());
        assert_eq!(*asked.lock(), ["a", "b"]);
        script.lock().insert("b".into(), Some(200));
        assert!(endpoints.client().send(request(Method::GET)).await.is_ok());
    }

    #[tokio::test]
    async fn a_member_without_a_leader_is_left_at_its_second_refusal() {
        let (endpoints, _, asked) = members(&[("a", Some(503)), ("b", Some(200))]);
        let client = endpoints.client();
        for expected in [503, 503, 200] {
            assert_eq!(client.send(request(Method::GET)).await.unwrap().status(), expected);
        }
        assert_eq!(*asked.lock(), ["a", "a", "b"]);
    }

    #[tokio::test]
    async fn members_are_learned_and_forgotten_but_not_the_one_in_use() {
        let (endpoints, script, asked) = members(&[("a", None)]);
        script.lock().extend([("b".to_owned(), Some(200)), ("c".to_owned(), Some(200))]);
        let urls = |list: &[&str]| list.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
        endpoints.learn(&urls(&["a", "b", "c"]));
        assert!(endpoints.client().send(request(Method::GET)).await.is_ok());
        endpoints.learn(&urls(&["c"]));
        assert_eq!(endpoints.urls(), ["a", "b", "c"]);
        assert!(endpoints.client().send(request(Method::GET)).await.is_ok());
        assert_eq!(*asked.lock(), ["a", "b", "b"]);
        endpoints.learn(&urls(&[]));
        assert_eq!(endpoints.urls(), ["a", "b"]);
    }
}
