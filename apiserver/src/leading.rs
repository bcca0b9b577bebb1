//! What one member of the cluster does for all, while it leads.
//!
//! Every write carries the term: what a former leader still had under way is refused. What is done
//! here begins anew with each term and is dropped at its end.

use crate::server::ApiServer;
use crate::{bootstrap, endpoints, expiry};
use rkube_store::Leadership;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const RETRY: Duration = Duration::from_secs(1);

/// The term in which writes of a leader may be made here.
pub fn term_of(leadership: &Leadership) -> Option<u64> {
    leadership.leads.then_some(leadership.term)
}

/// Hands on the term whenever this member begins or ceases to lead.
pub async fn tell(mut leadership: watch::Receiver<Leadership>, terms: watch::Sender<Option<u64>>) {
    loop {
        let term = term_of(&leadership.borrow_and_update());
        terms.send_if_modified(|was| std::mem::replace(was, term) != term);
        if leadership.changed().await.is_err() {
            // The store is closed.
            terms.send_replace(None);
            return;
        }
    }
}

/// Leads whenever it is this member's turn, until the server stops.
pub async fn run(api: Arc<ApiServer>, mut terms: watch::Receiver<Option<u64>>) {
    loop {
        let term = tokio::select! {
            () = api.stopping.cancelled() => return,
            term = terms.wait_for(Option::is_some) => match term {
                Ok(term) => *term,
                Err(_) => return,
            },
        };
        let Some(number) = term else { continue };
        tokio::select! {
            () = api.stopping.cancelled() => return,
            _ = terms.wait_for(|now| *now != term) => {}
            () = work(&api, number) => {}
        }
    }
}

async fn work(api: &Arc<ApiServer>, term: u64) {
    while let Err(error) = bootstrap::make_first_objects(api, term).await {
        tracing::warn!(term, %error, "making the cluster's first objects failed");
        tokio::time::sleep(RETRY).await;
    }
    tokio::join!(
        bootstrap::keep_namespaces_furnished(api, term),
        expiry::run(api, term),
        endpoints::keep(api, term),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_term_is_told_only_while_it_may_write() {
        let (leader, leadership) = watch::channel(Leadership { term: 3, leader: 1, leads: false });
        let (sender, mut terms) = watch::channel(None);
        let task = tokio::spawn(tell(leadership, sender));
        leader.send_replace(Leadership { term: 3, leader: 1, leads: true });
        assert_eq!(*terms.wait_for(Option::is_some).await.unwrap(), Some(3));
        leader.send_replace(Leadership { term: 4, leader: 2, leads: false });
        assert_eq!(*terms.wait_for(Option::is_none).await.unwrap(), None);
        leader.send_replace(Leadership { term: 7, leader: 1, leads: true });
        assert_eq!(*terms.wait_for(Option::is_some).await.unwrap(), Some(7));
        drop(leader);
        assert_eq!(*terms.wait_for(Option::is_none).await.unwrap(), None);
        task.await.unwrap();
    }
}
