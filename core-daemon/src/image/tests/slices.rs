//! Large layers over several connections, from hosts whose connections are slow each.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::*;

/// What a connection brings: so many bytes, each time after a pause.
const SLOWED: (usize, Duration) = (256 << 10, Duration::from_millis(40));

/// An image of one layer of about as many MiB, which no packing makes smaller.
fn large(mib: usize) -> Store {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let noise: Vec<u8> = (0..(mib << 20) / 8).flat_map(|_| next()).collect();
    let mut store = Store::default();
    store.image(&[tar(&[file("noise", b'0', "", &noise)])]);
    store
}

/// What is there for tests of a store's only layer.
struct Slow {
    fake: Fake,
    /// How many connections have brought parts of the layer at the same time, at most.
    most: Arc<AtomicUsize>,
}

impl Slow {
    /// Answers as `change` has it where a slice is wanted, the how-manieth of them it is told.
    async fn start(store: &Store, change: impl Fn(usize, Answer) -> Answer + Send + Sync + 'static) -> Self {
        let (store, layer) = (store.clone(), store.layers()[0].clone());
        let (number, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let (until, seen) = (StdMutex::new(Vec::<Instant>::new()), most.clone());
        let fake = Fake::start(move |asked| {
            let answer = store.answer(asked).with("etag", "\"one\"");
            if !asked.path.ends_with(&layer) {
                return answer;
            }
            let range = asked.header("range");
            let is_slice = !range.is_empty() && !range.ends_with('-');
            let answer = if is_slice { change(number.fetch_add(1, Ordering::SeqCst), answer) } else { answer };
            let pieces = u32::try_from(answer.body.len() / SLOWED.0).expect("a few");
            let mut until = until.lock().expect("lock");
            until.retain(|end| *end > Instant::now());
            until.push(Instant::now() + SLOWED.1 * pieces);
            seen.fetch_max(until.len(), Ordering::SeqCst);
            Answer { slowed: Some(SLOWED), ..answer }
        })
        .await;
        Self { fake, most }
    }

    fn slices(&self) -> usize {
        let is_slice = |range: &str| !range.is_empty() && !range.ends_with('-');
        self.fake.requests().iter().filter(|asked| is_slice(asked.header("range"))).count()
    }

    /// Pulls it, and says how long that took.
    async fn pull(&self, slices: usize) -> Duration {
        let mut it = fixture();
        (it.images.at_once.slices, it.images.at_once.large) = (slices, 1 << 20);
        let begun = Instant::now();
        let pulled = it.pull(&self.fake).await.expect("pull");
        let took = begun.elapsed();
        let is = std::fs::metadata(it.directories(&pulled)[0].join("noise")).expect("file").len();
        assert!(is.is_multiple_of(1 << 20) && is > 0, "{is}");
        took
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_comes_over_several_connections() {
    let store = large(30);
    let slow = Slow::start(&store, |_, answer| answer).await;
    let alone = slow.pull(1).await;
    assert_eq!(slow.slices(), 0, "{:?}", slow.fake.seen());
    let together = slow.pull(4).await;
    assert!(together * 2 < alone, "{together:?} and {alone:?} over one");
    // The answer that is let go may not have noticed yet.
    let most = slow.most.load(Ordering::SeqCst);
    assert!((3..=5).contains(&most), "{most}");
}

/// Whatever a host makes of slices, the layer comes as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_gives_no_slices_or_wrong_ones_is_asked_for_the_whole() {
    let store = large(16);
    let (_open, gate) = tokio::sync::watch::channel(false);
    type Change = Box<dyn Fn(usize, Answer) -> Answer + Send + Sync>;
    let with = |name: &'static str, value: &'static str| -> Change {
        Box::new(move |_, mut answer| {
            answer.headers.retain(|(known, _)| known != name);
            answer.with(name, value)
        })
    };
    let status = |status| -> Change { Box::new(move |_, _| Answer::new(status, "").with("retry-after", "0")) };
    let whole = store.0[&store.layers()[0]].1.clone();
    let cases: [(&str, Change); 11] = [
        ("the whole", Box::new(move |_, _| Answer::new(200, &whole[..]))),
        ("416", status(416)),
        ("429", status(429)),
        ("503", status(503)),
        ("403", status(403)),
        ("another slice", with("content-range", "bytes 0-4194303/16780000")),
        ("changed", with("etag", "\"other\"")),
        ("cut", Box::new(|_, answer| Answer { cut: Some(answer.body.len() / 2), ..answer })),
        ("nothing", Box::new(move |_, answer| Answer { held: Some((0, gate.clone())), ..answer })),
        (
            "flipped",
            Box::new(|_, mut answer| {
                answer.body[7] ^= 1;
                answer
            }),
        ),
        (
            "later nothing right",
            Box::new(|number, answer| match number {
                0 => answer,
                _ => Answer::new(404, ""),
            }),
        ),
    ];
    let pulls = cases.into_iter().map(async |(case, change)| {
        let slow = Slow::start(&store, change).await;
        slow.pull(4).await;
        assert!(slow.slices() > 0, "{case}: {:?}", slow.fake.seen());
    });
    futures_util::future::join_all(pulls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_layer_comes_over_one_connection() {
    let slow = Slow::start(&large(16), |_, answer| answer).await;
    let it = fixture();
    it.pull(&slow.fake).await.expect("pull");
    assert_eq!(slow.slices(), 0, "{:?}", slow.fake.seen());
}

/// Layers that have no connection yet come before more connections for others.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_all_layers_together_are_not_more_than_layers_may_be() {
    let slow = Slow::start(&large(16), |_, answer| answer).await;
    let mut it = fixture();
    (it.images.at_once.downloads, it.images.at_once.large) = (2, 1 << 20);
    it.pull(&slow.fake).await.expect("pull");
    let most = slow.most.load(Ordering::SeqCst);
    assert!(slow.slices() > 0 && most <= 3, "{most}: {:?}", slow.fake.seen());
}

/// What came in order is there, and only the rest is asked for; what had come of slices before their turn is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_pull_goes_on_from_where_all_had_come() {
    let store = large(30);
    let (slow, size) = (Slow::start(&store, |_, answer| answer).await, store.0[&store.layers()[0]].1.len());
    let mut it = fixture();
    it.images.at_once.large = 1 << 20;
    let stored = async {
        loop {
            let ingests = it.images.content.statuses(&it.ctx).expect("ingests");
            if slow.slices() > 4 && ingests.iter().any(|ingest| ingest.offset > size as u64 / 2) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        pulled = it.pull(&slow.fake) => panic!("it ended: {pulled:?}"),
        () = stored => {}
    }
    let asked = slow.fake.requests().len();
    let pulled = it.pull(&slow.fake).await.expect("pull");
    assert_eq!(it.directories(&pulled).len(), 1);
    let ranges: Vec<String> =
        slow.fake.requests()[asked..].iter().map(|asked| asked.header("range").to_owned()).collect();
    let first = ranges.iter().find_map(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    assert!(first.is_some_and(|first: usize| first > size / 2), "{ranges:?}");
}
