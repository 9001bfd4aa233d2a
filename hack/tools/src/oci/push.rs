//! The part of the distribution protocol (distribution-spec 1.1, "Push") that an upload needs, over plain HTTP.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    time::Duration,
};

use ureq::{
    Agent, Body, SendBody,
    http::{Response, StatusCode, header},
};

use super::{Error, build::MANIFEST, digest::Digest};

/// A layer of some hundred megabytes takes seconds; this is for a registry that hangs.
const DEADLINE: Duration = Duration::from_secs(300);

/// One repository of a registry.
pub struct Registry {
    agent: Agent,
    base: String,
    repository: String,
}

/// Content of a blob: `size` bytes of a file from `offset` on.
pub struct Blob<'a> {
    pub file: &'a File,
    pub offset: u64,
    pub size: u64,
}

impl Registry {
    pub fn new(base: &str, repository: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // The registry is in a network of its own: no proxy of the environment leads there.
            .proxy(None)
            .timeout_global(Some(DEADLINE))
            .build();
        Self { agent: config.into(), base: base.trim_end_matches('/').to_owned(), repository: repository.to_owned() }
    }

    /// Puts a blob there unless it is there.
    pub fn upload(&self, digest: &Digest, blob: &Blob<'_>) -> Result<(), Error> {
        let attempt = format!("store blob {digest} of {}", self.repository);
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.repository);
        let known = self.answer(&attempt, self.agent.head(url).call())?;
        if known.status() == StatusCode::OK {
            return Ok(());
        }
        let url = format!("{}/v2/{}/blobs/uploads/", self.base, self.repository);
        let begun = self.agent.post(url).send_empty();
        let begun = self.expect(&attempt, self.answer(&attempt, begun)?, StatusCode::ACCEPTED)?;
        let location = begun.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let request = self.agent.put(self.upload_url(location, digest)).content_type("application/octet-stream");
        let Blob { mut file, offset, size } = *blob;
        file.seek(SeekFrom::Start(offset)).map_err(Error::file("read", "archive"))?;
        let part = SendBody::from_owned_reader(file_part(file, size)?);
        let stored = request.header(header::CONTENT_LENGTH, size).send(part);
        self.expect(&attempt, self.answer(&attempt, stored)?, StatusCode::CREATED).map(drop)
    }

    /// Makes `tag` mean this manifest.
    pub fn tag(&self, tag: &str, manifest: &[u8]) -> Result<(), Error> {
        let attempt = format!("store manifest {}:{tag}", self.repository);
        let url = format!("{}/v2/{}/manifests/{tag}", self.base, self.repository);
        let stored = self.agent.put(url).content_type(MANIFEST).send(manifest);
        self.expect(&attempt, self.answer(&attempt, stored)?, StatusCode::CREATED).map(drop)
    }

    /// The address to send the blob to; the registry may answer with a path.
    fn upload_url(&self, location: &str, digest: &Digest) -> String {
        let absolute = if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() };
        let separator = if absolute.contains('?') { '&' } else { '?' };
        format!("{absolute}{separator}digest={digest}")
    }

    fn answer(&self, attempt: &str, result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Error> {
        result.map_err(|source| Error::Http {
            registry: self.base.clone(),
            attempt: attempt.to_owned(),
            source: Box::new(source),
        })
    }

    fn expect(&self, attempt: &str, mut response: Response<Body>, wanted: StatusCode) -> Result<Response<Body>, Error> {
        if response.status() == wanted {
            return Ok(response);
        }
        Err(Error::Status {
            registry: self.base.clone(),
            attempt: attempt.to_owned(),
            status: response.status().as_u16(),
            // Only for the message; without a body the status says it all.
            body: response.body_mut().read_to_string().unwrap_or_default(),
        })
    }
}

/// The next `size` bytes of a file; a copy of the descriptor shares its position.
fn file_part(file: &File, size: u64) -> Result<io::Take<File>, Error> {
    file.try_clone().map(|file| file.take(size)).map_err(Error::file("read", "archive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_goes_where_the_registry_says() {
        let registry = Registry::new("http://r:5000/", "a/b");
        let digest = Digest::of(b"");
        for (location, expected) in [
            ("http://r:5000/v2/u?_state=x", format!("http://r:5000/v2/u?_state=x&digest={digest}")),
            ("/v2/u", format!("http://r:5000/v2/u?digest={digest}")),
        ] {
            assert_eq!(registry.upload_url(location, &digest), expected);
        }
    }
}
