//! Which requests go through a proxy: those that the environment says, as Go's programs read it.

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use super::reach::is_loopback;

/// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, as the daemon was started with them.
pub(super) struct Proxies {
    usual: Matcher,
    /// What there is of `NO_PROXY`.
    exempt: String,
}

impl Proxies {
    pub(super) fn of_environment() -> Self {
        let exempt = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok());
        Self { usual: Matcher::from_env(), exempt: exempt.unwrap_or_default() }
    }

    /// Whether a proxy takes a request. None does to this machine: it would not lead back to it.
    pub(super) fn intercept(&self, url: &Url) -> bool {
        let is_taken = || url.as_str().parse().is_ok_and(|uri| self.usual.intercept(&uri).is_some());
        !is_loopback(url) && !self.exempt.split(',').any(|entry| is_of(entry.trim(), url)) && is_taken()
    }
}

/// Whether an entry of `NO_PROXY` is about `url`. Ports and stars are what the HTTP client does not know of; networks are
/// left to it.
fn is_of(entry: &str, url: &Url) -> bool {
    let entry = entry.to_ascii_lowercase();
    let (name, port) = match entry.rsplit_once(':').map(|(name, port)| (name, port.parse::<u16>())) {
        // Without brackets it is the end of an IPv6 address.
        Some((name, Ok(port))) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (entry.as_str(), None),
    };
    let (Some(host), false) = (url.host_str(), name.is_empty()) else { return false };
    if port.is_some() && port != url.port_or_known_default() {
        return false;
    }
    let suffix = name.trim_start_matches('*');
    match suffix.starts_with('.') || suffix.is_empty() {
        true => host.ends_with(suffix),
        false => host.strip_suffix(suffix).is_some_and(|front| front.is_empty() || front.ends_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exempt_may_have_a_port_or_a_star() {
        for (entry, url, wanted) in [
            ("r.lan:5000", "http://r.lan:5000/v2/", true),
            ("r.lan:5000", "http://r.lan/v2/", false),
            ("r.lan:443", "https://r.lan/v2/", true),
            ("R.lan:80", "http://a.r.lan/", true),
            (".lan:8443", "https://r.lan:8443/", true),
            (".lan:8443", "https://lan:8443/", false),
            ("*.lan", "https://a.b.lan/", true),
            ("*.lan", "https://wlan/", false),
            ("lan", "https://wlan/", false),
            ("*", "https://r.io/", true),
            ("*:5000", "https://r.io/", false),
            ("10.0.0.1:5000", "http://10.0.0.1:5000/", true),
            ("[fd00::1]:5000", "http://[fd00::1]:5000/", true),
            ("fd00::1", "http://[fd00::2]:1/", false),
            ("", "http://r.lan/", false),
            (":80", "http://r.lan/", false),
        ] {
            assert_eq!(is_of(entry, &url.parse().expect("url")), wanted, "{entry} {url}");
        }
        let usual = || Matcher::builder().http("http://proxy.lan:3128").no("b.io").build();
        let proxies = Proxies { usual: usual(), exempt: "b.io, r.lan:5000".to_owned() };
        let is_taken = |url: &str| proxies.intercept(&url.parse().expect("url"));
        assert!(is_taken("http://r.lan/v2/") && is_taken("http://a.io:5000/v2/"));
        for url in ["http://r.lan:5000/v2/", "http://b.io/", "http://localhost:1/", "https://r.lan/"] {
            assert!(!is_taken(url), "{url}");
        }
    }
}
