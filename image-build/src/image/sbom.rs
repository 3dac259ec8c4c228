//! The bill of materials: every package of an image in CycloneDX 1.6, for programs that look for known faults.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::archive::field;
use super::cache::Cache;
use super::fetch::kept_control;
use super::lock::{Lock, Locked, Origin};
use crate::Error;

/// The bill of a lock whose packages are in the cache. It depends on the lock alone.
pub(crate) fn text(cache: &Cache, lock: &Lock) -> Result<String, Error> {
    let mut components = Vec::new();
    for package in &lock.packages {
        components.push(component(lock, package, &kept_control(cache, package)?));
    }
    let mut seed = [0; 16];
    seed.copy_from_slice(&Sha256::digest(lock.to_text()?)[..16]);
    // RFC 9562, version 8: an id of one's own making.
    let serial = uuid::Builder::from_custom_bytes(seed).into_uuid();
    let made = std::time::UNIX_EPOCH + std::time::Duration::from_secs(lock.epoch);
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{serial}"),
        "version": 1,
        "metadata": {
            "timestamp": humantime::format_rfc3339_seconds(made).to_string(),
            "component": {
                "type": "operating-system",
                "bom-ref": "image",
                "name": lock.manifest,
                "version": lock.epoch.to_string(),
            },
        },
        "components": components,
    });
    Ok(format!("{bill:#}\n"))
}

fn component(lock: &Lock, package: &Locked, control: &str) -> Value {
    let vendor = match package.origin {
        Origin::Debian | Origin::Security => "debian",
        Origin::File => "aerie",
    };
    let Locked {
        name, version, arch, ..
    } = package;
    let sign = |c: char| match c {
        '+' => "%2B".to_owned(),
        ':' => "%3A".to_owned(),
        c => c.to_string(),
    };
    let version_in_url: String = version.chars().map(sign).collect();
    let name_in_url: String = name.chars().map(sign).collect();
    let url = format!(
        "pkg:deb/{vendor}/{name_in_url}@{version_in_url}?arch={arch}&distro={}",
        lock.suite
    );
    let mut component = json!({
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
        "hashes": [{ "alg": "SHA-256", "content": package.sha256 }],
    });
    if let Some(description) = field(control, "Description") {
        component["description"] = description.into();
    }
    if let Some(maintainer) = field(control, "Maintainer") {
        component["supplier"] = json!({ "name": maintainer });
    }
    if let Some(homepage) = field(control, "Homepage") {
        component["externalReferences"] = json!([{ "type": "website", "url": homepage }]);
    }
    // Faults are told of sources, whose version may be another.
    if let Some(source) = field(control, "Source") {
        component["properties"] = json!([{ "name": "debian:source", "value": source }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Manifest;

    #[test]
    fn every_package_is_in_the_bill_with_its_hash_and_an_url_that_tools_read() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let package = Locked {
            name: "libstdc++6".to_owned(),
            version: "1:14.2.0+x".to_owned(),
            arch: "amd64".to_owned(),
            origin: Origin::Debian,
            path: "pool/x.deb".to_owned(),
            size: 1,
            sha256: "ab".repeat(32),
        };
        let control = cache.deb(&package.sha256).with_extension("control");
        std::fs::write(
            control,
            "Package: libstdc++6\nSource: gcc-14\nMaintainer: A <a@b.c>\n",
        )
        .unwrap();
        let lock = Lock::new(
            &Manifest::load("small").unwrap(),
            86_400,
            vec![package],
            Vec::new(),
        );
        let text = text(&cache, &lock).unwrap();
        let bill: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(bill["metadata"]["timestamp"], "1970-01-02T00:00:00Z");
        let part = &bill["components"][0];
        assert_eq!(
            part["purl"],
            "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2.0%2Bx?arch=amd64&distro=trixie"
        );
        assert_eq!(part["hashes"][0]["content"], "ab".repeat(32));
        assert_eq!(part["properties"][0]["value"], "gcc-14");
    }
}
