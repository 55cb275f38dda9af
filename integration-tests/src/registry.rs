//! A real registry on loopback: Debian's `docker-registry` with a config and storage of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::http::{self, Response};
use crate::image::Blob;
use crate::{Env, Image, Result, wait};

/// A running registry, ended when dropped. Its storage stays until the test's directory goes.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    /// Where it keeps blobs: `docker/registry/v2/blobs/sha256/xx/<hash>/data`, for a test that breaks one.
    pub storage: PathBuf,
    /// What it logs.
    pub log: PathBuf,
}

impl Registry {
    /// Starts a registry on a free port and waits until it answers.
    pub fn start(env: &Env) -> Result<Self> {
        Self::start_with(env, "registry", "")
    }

    /// Starts a registry with `extra` lines added to its YAML config, its files in directory `name`.
    pub fn start_with(env: &Env, name: &str, extra: &str) -> Result<Self> {
        let dir = env.dir(name)?;
        // Another program can take the port between our look and the registry's bind: then the next one is tried.
        let mut last = None;
        for _ in 0..5 {
            match Self::try_start(env, &dir, extra) {
                Ok(registry) => return Ok(registry),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("registry was never started")))
    }

    /// Starts a registry with busybox in it; gives the image's name too.
    pub fn with_busybox(env: &Env) -> Result<(Self, String)> {
        let registry = Self::start(env)?;
        let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
        Ok((registry, image))
    }

    fn try_start(env: &Env, dir: &Path, extra: &str) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let storage = dir.join("storage");
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: {address}\n{extra}\n",
            storage.display()
        );
        fs::write(&config, text).context("write the registry's config")?;
        let log = dir.join("log");
        let file = File::create(&log).context("create the registry's log")?;
        let mut command = Command::new("docker-registry");
        env.prepare(&mut command);
        let child = command
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start docker-registry (package docker-registry)")?;
        let mut registry = Self { child, address, storage, log };
        registry.wait_ready()?;
        Ok(registry)
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait::until_within(wait::seconds(20), "the registry answers", || match self.child.try_wait() {
            Ok(Some(status)) => Some(Err(status.to_string())),
            _ => http::request(self.address, "GET", "/v2/", &[], b"").ok().map(|_| Ok(())),
        })?
        .map_err(|status| {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            anyhow::anyhow!("docker-registry ended with {status}: {said}")
        })
    }

    /// `127.0.0.1:PORT`, the first part of a reference.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Sends a request to it.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        http::request(self.address, method, path, headers, body)
    }

    /// Uploads a blob.
    pub fn put_blob(&self, name: &str, blob: &Blob) -> Result<()> {
        let begun = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"")?.expect(202)?;
        let location = begun.header("location").context("the upload has no location")?;
        let path = match location.split_once("://") {
            Some((_, rest)) => &rest[rest.find('/').unwrap_or(rest.len())..],
            None => location,
        };
        let join = if path.contains('?') { '&' } else { '?' };
        let put = format!("{path}{join}digest={}", blob.digest);
        self.request("PUT", &put, &[("content-type", "application/octet-stream")], &blob.bytes)?.expect(201)?;
        Ok(())
    }

    /// Uploads a manifest or an index under a tag or its digest.
    pub fn put_manifest(&self, name: &str, tag: &str, manifest: &Blob) -> Result<()> {
        let path = format!("/v2/{name}/manifests/{tag}");
        self.request("PUT", &path, &[("content-type", &manifest.media_type)], &manifest.bytes)?.expect(201)?;
        Ok(())
    }

    /// Path of a blob's bytes on disk, to break them.
    pub fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let Some((algorithm, hash)) = digest.split_once(':') else { bail!("not a digest: {digest}") };
        Ok(self.storage.join("docker/registry/v2/blobs").join(algorithm).join(&hash[..2]).join(hash).join("data"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
