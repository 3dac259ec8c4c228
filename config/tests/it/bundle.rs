//! The bundle in every form, and what each form's reader says of bad ones.

use std::fs;
use std::io::{Cursor, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use aerie_config::{
    Bundle, Error, Form, MAX_FILE_BYTES, MAX_FILES, MAX_TOTAL_BYTES, MAX_USER_DATA_BYTES, SPEC_FILE,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use zip::write::SimpleFileOptions;

use crate::common::{bundle, full, message, minimal, noise};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn spec_alone() -> Bundle {
    let mut bundle = Bundle::default();
    bundle.insert(SPEC_FILE, minimal().into_bytes()).unwrap();
    bundle
}

fn through_a_directory(bundle: &Bundle) -> Bundle {
    let dir = tempfile::tempdir().unwrap();
    bundle.to_dir(dir.path()).unwrap();
    Bundle::from_dir(dir.path()).unwrap()
}

#[test]
fn a_bundle_is_the_same_through_every_carrier() {
    for bundle in [bundle(), spec_alone()] {
        for bytes in [
            bundle.to_floppy().unwrap(),
            bundle.to_zip().unwrap(),
            bundle.to_user_data().unwrap(),
        ] {
            assert_eq!(Bundle::open(&bytes).unwrap(), bundle);
        }
        assert_eq!(through_a_directory(&bundle), bundle);
        bundle.spec().unwrap();
    }
}

#[test]
fn forms_are_known_by_their_bytes() {
    let bundle = bundle();
    let user_data = bundle.to_user_data().unwrap();
    assert_eq!(Bundle::sniff(&bundle.to_floppy().unwrap()), Some(Form::Floppy));
    assert_eq!(Bundle::sniff(&bundle.to_zip().unwrap()), Some(Form::Zip));
    assert_eq!(Bundle::sniff(&user_data), Some(Form::Gzip));
    assert_eq!(
        Bundle::sniff(STANDARD.encode(&user_data).as_bytes()),
        Some(Form::Base64)
    );
    assert_eq!(Bundle::sniff(full().as_bytes()), Some(Form::Toml));
    assert_eq!(Bundle::sniff(b"hello"), None);
    assert_eq!(Bundle::sniff(b""), None);
}

#[test]
fn each_form_depends_on_the_bundle_alone() {
    let (one, other) = (bundle(), bundle());
    assert_eq!(one.to_floppy().unwrap(), other.to_floppy().unwrap());
    assert_eq!(one.to_zip().unwrap(), other.to_zip().unwrap());
    assert_eq!(one.to_user_data().unwrap(), other.to_user_data().unwrap());
}

#[test]
fn user_data_of_a_spec_alone_is_its_gzipped_text() {
    let mut text = String::new();
    let packed = spec_alone().to_user_data().unwrap();
    GzDecoder::new(packed.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, minimal());
}

#[test]
fn user_data_may_be_wrapped_in_base64_with_line_breaks() {
    let bundle = bundle();
    let text = STANDARD.encode(bundle.to_user_data().unwrap());
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(76)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    assert_eq!(
        Bundle::from_user_data(lines.join("\r\n").as_bytes()).unwrap(),
        bundle
    );
    assert_eq!(
        Bundle::from_user_data(text.trim_end_matches('=').as_bytes()).unwrap(),
        bundle
    );
    let url_safe = text.replace('+', "-").replace('/', "_");
    assert_eq!(Bundle::from_user_data(url_safe.as_bytes()).unwrap(), bundle);
}

#[test]
fn user_data_may_be_the_bare_text() {
    assert_eq!(
        Bundle::from_user_data(minimal().as_bytes()).unwrap(),
        spec_alone()
    );
}

#[test]
fn user_data_may_be_a_zipped_floppy_image_in_base64_as_the_grid_appliance_had_it() {
    let image = spec_alone().to_floppy().unwrap();
    let text = STANDARD.encode(zip_of(&[("floppy.img", &image)]));
    assert_eq!(Bundle::from_user_data(text.as_bytes()).unwrap(), spec_alone());
}

#[test]
fn a_floppy_written_by_mtools_is_read() {
    let mut image = Vec::new();
    let packed: &[u8] = include_bytes!("../data/mtools-floppy.img.gz");
    GzDecoder::new(packed).read_to_end(&mut image).unwrap();
    let bundle = Bundle::from_floppy(&image).unwrap();
    let names: Vec<&str> = bundle.files().map(|(name, _)| name).collect();
    assert_eq!(names, ["README.TXT", SPEC_FILE, "site.crt"]);
    assert_eq!(bundle.get("site.crt"), Some(&b"lower\n"[..]));
    assert_eq!(
        bundle.spec().unwrap().enrol.token.unwrap().expose(),
        "token-of-a-fixture"
    );
}

#[test]
fn a_floppy_is_read_by_other_programs() {
    let image = bundle().to_floppy().unwrap();
    assert_eq!(image.len(), 1_474_560);
    let disk = fatfs::FileSystem::new(Cursor::new(image), fatfs::FsOptions::new()).unwrap();
    assert_eq!(disk.volume_label(), "AERIE");
    let mut text = String::new();
    disk.root_dir()
        .open_file(SPEC_FILE)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, full());
}

/// Runs another program on files in a folder; its output.
fn run(dir: &std::path::Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install dosfstools, mtools and zip"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn other_peoples_tools_accept_our_floppy_and_we_accept_theirs() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ours.img"), bundle().to_floppy().unwrap()).unwrap();
    run(dir.path(), "fsck.vfat", &["-n", "ours.img"]);
    assert_eq!(
        run(dir.path(), "mtype", &["-i", "ours.img", "::aerie.toml"]),
        full()
    );

    let files = dir.path().join("files");
    bundle().to_dir(&files).unwrap();
    run(
        &files,
        "mformat",
        &["-C", "-f", "1440", "-i", "../theirs.img", "::"],
    );
    run(
        &files,
        "mcopy",
        &["-i", "../theirs.img", SPEC_FILE, "README.txt", "site.crt", "::"],
    );
    assert_eq!(
        Bundle::open(&fs::read(dir.path().join("theirs.img")).unwrap()).unwrap(),
        bundle()
    );
}

#[test]
fn an_archive_of_the_zip_program_is_read() {
    let dir = tempfile::tempdir().unwrap();
    bundle().to_dir(dir.path()).unwrap();
    run(
        dir.path(),
        "zip",
        &["-q", "blob.zip", SPEC_FILE, "README.txt", "site.crt"],
    );
    assert_eq!(
        Bundle::open(&fs::read(dir.path().join("blob.zip")).unwrap()).unwrap(),
        bundle()
    );
}

#[test]
fn larger_fat_volumes_are_read_too() {
    let contents = noise(100_000);
    for (bytes, kind) in [
        (8 << 20, fatfs::FatType::Fat16),
        (40 << 20, fatfs::FatType::Fat32),
    ] {
        let mut disk = vec![0; bytes];
        let options = fatfs::FormatVolumeOptions::new()
            .fat_type(kind)
            .bytes_per_cluster(512);
        fatfs::format_volume(Cursor::new(&mut disk), options).unwrap();
        {
            let volume = fatfs::FileSystem::new(Cursor::new(&mut disk), fatfs::FsOptions::new()).unwrap();
            assert_eq!(volume.fat_type(), kind);
            let root = volume.root_dir();
            root.create_dir("folder").unwrap();
            root.create_file(SPEC_FILE)
                .unwrap()
                .write_all(minimal().as_bytes())
                .unwrap();
            root.create_file("a-file-with-a-long-name.bin")
                .unwrap()
                .write_all(&contents)
                .unwrap();
        }
        let bundle = Bundle::from_floppy(&disk).unwrap();
        assert_eq!(bundle.len(), 2);
        assert_eq!(
            bundle.get("a-file-with-a-long-name.bin"),
            Some(contents.as_slice())
        );
    }
}

#[test]
fn a_full_bundle_fits_a_floppy() {
    let mut bundle = Bundle::default();
    bundle.insert(SPEC_FILE, minimal().into_bytes()).unwrap();
    let each = (MAX_TOTAL_BYTES - minimal().len()) / (MAX_FILES - 1);
    for i in 0..MAX_FILES - 1 {
        bundle.insert(&format!("{i:0>64}"), noise(each)).unwrap();
    }
    assert_eq!(Bundle::open(&bundle.to_floppy().unwrap()).unwrap(), bundle);
    assert_eq!(Bundle::open(&bundle.to_zip().unwrap()).unwrap(), bundle);
    assert!(message(bundle.insert("one-more", Vec::new())).contains("more than 32 files"));
}

#[test]
fn a_truncated_floppy_says_both_sizes() {
    let image = bundle().to_floppy().unwrap();
    assert_eq!(
        message(Bundle::from_floppy(&image[..700_000])),
        "the floppy is cut off: it has 700000 bytes and should have 1474560; copy it again in full"
    );
    assert!(message(Bundle::from_floppy(&image[..100])).contains("it has 100 bytes and should have 1474560"));
}

#[test]
fn an_empty_floppy_says_so() {
    assert_eq!(
        message(Bundle::from_floppy(&[])),
        "the floppy is empty (0 bytes): write the blob to it again"
    );
}

#[test]
fn a_floppy_without_files_says_so() {
    let mut image = vec![0; 1_474_560];
    let options = fatfs::FormatVolumeOptions::new().bytes_per_cluster(512);
    fatfs::format_volume(Cursor::new(&mut image), options).unwrap();
    assert_eq!(
        message(Bundle::from_floppy(&image)),
        "the floppy has no file aerie.toml: it holds no files; put the blob's files at its top level"
    );
}

#[test]
fn a_disk_that_is_not_fat_says_so() {
    assert!(
        message(Bundle::open(&vec![0; 1_474_560])).contains("no FAT file system: it is blank; make it with")
    );
    let ext4_like = noise(1_474_560);
    let error = Bundle::from_floppy(&ext4_like).unwrap_err();
    assert!(error.is_foreign());
    assert!(
        error.to_string().contains("its first sector is no boot sector"),
        "{error}"
    );
}

#[test]
fn a_floppy_whose_chain_leads_nowhere_is_damaged() {
    let mut image = bundle().to_floppy().unwrap();
    // Both allocation tables, of nine sectors each, are wiped but for their heads.
    for table in [512, 512 + 9 * 512] {
        image[table + 3..table + 9 * 512].fill(0);
    }
    let said = message(Bundle::from_floppy(&image));
    assert!(
        said.contains("the floppy is damaged: the file ") && said.contains("which does not exist"),
        "{said}"
    );
}

#[test]
fn user_data_over_the_limit_says_size_limit_and_remedy() {
    let mut bundle = bundle();
    bundle.insert("big.bin", noise(20_000)).unwrap();
    let error = bundle.to_user_data().unwrap_err();
    let Error::UserDataTooLarge { size } = error else {
        panic!("{error}")
    };
    assert!(size > MAX_USER_DATA_BYTES);
    assert_eq!(
        error.to_string(),
        format!(
            "the user-data is {size} bytes and the limit is 16384: leave out extra files, or carry the blob as a \
             floppy image or a directory instead"
        )
    );
    assert!(
        message(Bundle::from_user_data(&vec![b'x'; 16_385]))
            .contains("is 16385 bytes and the limit is 16384")
    );
}

#[test]
fn bad_base64_says_where() {
    let mut text = STANDARD.encode(spec_alone().to_user_data().unwrap()).into_bytes();
    text[40] = b'!';
    let said = message(Bundle::from_user_data(&text));
    assert!(
        said.contains("the base64 text is damaged: it does not decode (Invalid symbol 33, offset 40"),
        "{said}"
    );
}

#[test]
fn torn_gzip_says_so() {
    let packed = spec_alone().to_user_data().unwrap();
    let said = message(Bundle::from_user_data(&packed[..packed.len() - 20]));
    assert!(
        said.contains("the gzip data is damaged: it is cut off after"),
        "{said}"
    );
    let mut packed = packed;
    let last = packed.len() - 8;
    packed[last] ^= 1;
    assert!(
        message(Bundle::from_user_data(&packed)).contains("the gzip data is damaged: it does not unpack")
    );
}

#[test]
fn a_gzip_bomb_is_refused() {
    let bomb = gzip(&vec![0; 8 << 20]);
    assert!(bomb.len() < MAX_USER_DATA_BYTES);
    assert!(message(Bundle::from_user_data(&bomb)).contains("the blob is larger than 2097152 bytes"));
}

#[test]
fn a_zip_bomb_is_refused() {
    let bomb = zip_of(&[(SPEC_FILE, minimal().as_bytes()), ("bomb", &vec![0; 64 << 20])]);
    let said = message(Bundle::open(&bomb));
    assert!(
        said.contains("the file 'bomb' in the zip archive is larger than 524288 bytes"),
        "{said}"
    );
    let many: Vec<(String, Vec<u8>)> = (0..5)
        .map(|i| (format!("f{i}"), vec![0; MAX_FILE_BYTES]))
        .collect();
    let spec = minimal();
    let spec = [(SPEC_FILE, spec.as_bytes())];
    let many: Vec<(&str, &[u8])> = many
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    assert!(
        message(Bundle::open(&zip_of(&[&spec, many.as_slice()].concat())))
            .contains("the sum of the bundle's files is larger than")
    );
    let entries: Vec<String> = (0..200).map(|i| format!("f{i}")).collect();
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|name| (name.as_str(), &b""[..])).collect();
    assert!(
        message(Bundle::open(&zip_of(&[&spec, entries.as_slice()].concat()))).contains("more than 32 files")
    );
}

#[test]
fn a_zip_name_that_leads_elsewhere_is_refused() {
    for name in ["../../etc/passwd", "/etc/passwd", "..\\evil", "folder/aerie.toml"] {
        let said = message(Bundle::open(&zip_of(&[
            (SPEC_FILE, minimal().as_bytes()),
            (name, b"x"),
        ])));
        assert!(
            said.contains("cannot be carried: it names a place in another folder"),
            "{name}: {said}"
        );
    }
}

#[test]
fn a_zip_made_on_a_desktop_is_read() {
    let archive = zip_of(&[
        ("AERIE.TOML", minimal().as_bytes()),
        (".DS_Store", b"x"),
        ("__MACOSX/._aerie.toml", b"x"),
    ]);
    assert_eq!(Bundle::open(&archive).unwrap(), spec_alone());
}

#[test]
fn a_zip_without_a_spec_says_what_it_holds() {
    let said = message(Bundle::open(&zip_of(&[("notes.txt", b"x")])));
    assert!(
        said.contains("the zip archive has no file aerie.toml: it holds notes.txt"),
        "{said}"
    );
}

#[test]
fn a_zipped_folder_says_where_the_files_belong() {
    let error = Bundle::open(&zip_of(&[("blob/aerie.toml", minimal().as_bytes())])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the zip archive has no file aerie.toml: it holds blob/aerie.toml; put the blob's files at its top level"
    );
}

#[test]
fn a_carrier_of_somebody_elses_files_is_foreign_whatever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("MY LETTER.DOC"), "x").unwrap();
    fs::File::create(dir.path().join("giant"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(Bundle::from_dir(dir.path()).unwrap_err().is_foreign());

    let mut image = vec![0; 1_474_560];
    let options = fatfs::FormatVolumeOptions::new().bytes_per_cluster(512);
    fatfs::format_volume(Cursor::new(&mut image), options).unwrap();
    {
        let disk = fatfs::FileSystem::new(Cursor::new(&mut image), fatfs::FsOptions::new()).unwrap();
        disk.root_dir()
            .create_file("MY LETTER.DOC")
            .unwrap()
            .write_all(&noise(900_000))
            .unwrap();
    }
    let error = Bundle::from_floppy(&image).unwrap_err();
    assert!(
        error.is_foreign() && error.to_string().contains("it holds MY LETTER.DOC;"),
        "{error}"
    );

    let archive = zip_of(&[
        ("a b", b"x"),
        ("../c", b"x"),
        ("d", b"x"),
        ("e", b"x"),
        ("f", b"x"),
    ]);
    let error = Bundle::open(&archive).unwrap_err();
    assert!(
        error.is_foreign()
            && error
                .to_string()
                .contains("it holds a b, ../c, d, e, and others;"),
        "{error}"
    );
}

#[test]
fn an_image_beside_a_spec_is_a_file_like_others() {
    let mut bundle = bundle();
    bundle.insert("disk.img", noise(5000)).unwrap();
    assert_eq!(Bundle::open(&bundle.to_zip().unwrap()).unwrap(), bundle);
    assert_eq!(Bundle::open(&bundle.to_user_data().unwrap()).unwrap(), bundle);
}

#[test]
fn two_files_of_one_name_are_refused() {
    let archive = zip_of(&[
        (SPEC_FILE, minimal().as_bytes()),
        ("AERIE.TOML", full().as_bytes()),
    ]);
    assert!(message(Bundle::open(&archive)).contains("another file has the same name"));
}

#[test]
fn a_cut_off_zip_is_damaged() {
    let archive = bundle().to_zip().unwrap();
    assert!(message(Bundle::open(&archive[..archive.len() / 2])).contains("the zip archive is damaged"));
}

#[test]
fn wrappings_without_end_are_refused() {
    let mut blob = minimal().into_bytes();
    for _ in 0..4 {
        blob = gzip(&blob);
    }
    assert_eq!(Bundle::open(&blob).unwrap(), spec_alone());
    assert!(message(Bundle::open(&gzip(&blob))).contains("wrapped more than 4 times"));
}

#[test]
fn foreign_user_data_is_named_and_passed_over() {
    for (text, what) in [
        ("#!/bin/sh\necho version = 1\n[node]", "a script"),
        ("#cloud-config\npackages: [aerie]\n", "a cloud-init configuration"),
        (
            "Content-Type: multipart/mixed; boundary=x\n",
            "a MIME message for cloud-init",
        ),
        ("<html>404</html>", "a web page"),
        ("hello", "no Aerie blob"),
        ("hostname node17 role compute", "no Aerie blob"),
        ("abcdefghijklmnopqrst", "no Aerie blob"),
    ] {
        let error = Bundle::from_user_data(text.as_bytes()).unwrap_err();
        assert!(error.is_foreign() && error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_spec_that_is_not_utf8_says_so() {
    let archive = zip_of(&[(SPEC_FILE, b"version = 1 # \xff")]);
    assert!(message(Bundle::open(&archive).unwrap().spec()).contains("not UTF-8"));
}

#[test]
fn a_directory_keeps_secrets_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let blob = dir.path().join("blob.d");
    bundle().to_dir(&blob).unwrap();
    bundle().to_dir(&blob).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&blob), 0o700);
    assert_eq!(mode(&blob.join(SPEC_FILE)), 0o600);
    assert_eq!(fs::read_dir(&blob).unwrap().count(), 3);
}

#[test]
fn an_empty_directory_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        message(Bundle::from_dir(dir.path())),
        "the directory has no file aerie.toml: it holds no files; put the blob's files at its top level"
    );
}

#[test]
fn a_directory_with_a_giant_file_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    spec_alone().to_dir(dir.path()).unwrap();
    fs::File::create(dir.path().join("giant"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let said = message(Bundle::from_dir(dir.path()));
    assert!(
        said.contains("giant is larger than 524288 bytes: take it out"),
        "{said}"
    );
}

#[test]
fn a_directory_leaves_out_folders_hidden_files_and_pipes() {
    let dir = tempfile::tempdir().unwrap();
    spec_alone().to_dir(dir.path()).unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::write(dir.path().join(".hidden"), "x").unwrap();
    fs::write(dir.path().join("aerie.toml~"), "x").unwrap();
    std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(Bundle::from_dir(dir.path()).unwrap(), spec_alone());
}

#[test]
fn names_that_differ_in_case_only_are_refused() {
    let mut bundle = bundle();
    assert!(message(bundle.insert("readme.TXT", Vec::new())).contains("differs from it in case only"));
}

#[test]
fn a_bundle_without_a_spec_is_not_written() {
    let mut bundle = Bundle::default();
    bundle.insert("notes.txt", b"x".to_vec()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(message(bundle.to_floppy()).contains("no file aerie.toml"));
    assert!(message(bundle.to_zip()).contains("no file aerie.toml"));
    assert!(message(bundle.to_user_data()).contains("no file aerie.toml"));
    assert!(message(bundle.to_dir(dir.path())).contains("no file aerie.toml"));
}

#[test]
fn debug_shows_sizes_and_no_contents() {
    let shown = format!("{:?}", spec_alone());
    assert!(
        shown.contains("aerie.toml") && shown.contains("bytes") && !shown.contains("token"),
        "{shown}"
    );
}

fn any_bundle() -> impl Strategy<Value = Bundle> {
    let file = (
        "[A-Za-z0-9][A-Za-z0-9._-]{0,62}[A-Za-z0-9_-]",
        prop::collection::vec(any::<u8>(), 0..2000),
    );
    prop::collection::vec(file, 0..5).prop_map(|files| {
        let mut bundle = spec_alone();
        for (name, bytes) in files {
            // Names that differ in case only are refused, which is right here too.
            let _ = bundle.insert(&name, bytes);
        }
        bundle
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bundle_is_the_same_through_all_four_carriers(bundle in any_bundle()) {
        prop_assert_eq!(&Bundle::from_floppy(&bundle.to_floppy().unwrap()).unwrap(), &bundle);
        prop_assert_eq!(&Bundle::from_zip(&bundle.to_zip().unwrap()).unwrap(), &bundle);
        prop_assert_eq!(&Bundle::from_user_data(&bundle.to_user_data().unwrap()).unwrap(), &bundle);
        prop_assert_eq!(&through_a_directory(&bundle), &bundle);
    }
}
