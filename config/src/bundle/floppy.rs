//! Floppy images: 1.44 MB, FAT12, as virtual machines and the Grid Appliance take them.
//!
//! Images are written by the `fatfs` library, and read by [`Volume`], which trusts nothing
//! that the image says. No mount and no kernel driver is needed for either.

use std::io::{Cursor, Write as _};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use super::{Bundle, Form, Volume};
use crate::error::Error;

/// The size of a 3.5-inch high-density floppy in bytes.
const FLOPPY_BYTES: usize = 1_474_560;

/// The label by which a floppy is found and recognised.
pub(crate) const LABEL: &str = "AERIE";

/// [`LABEL`] as it stands in a boot sector.
const LABEL_PADDED: [u8; 11] = *b"AERIE      ";

impl Bundle {
    /// The bundle as a floppy image labelled `AERIE`. The bytes depend on the bundle only.
    ///
    /// # Errors
    /// [`Error::NoSpec`] without a spec.
    pub fn to_floppy(&self) -> Result<Vec<u8>, Error> {
        self.require_spec(Form::Floppy)?;
        let mut image = vec![0; FLOPPY_BYTES];
        let write = |image: &mut [u8]| -> std::io::Result<()> {
            fatfs::format_volume(Cursor::new(&mut *image), geometry())?;
            let disk = FileSystem::new(
                Cursor::new(&mut *image),
                FsOptions::new().time_provider(&FirstDay),
            )?;
            for (name, bytes) in self.files() {
                let mut file = disk.root_dir().create_file(name)?;
                file.write_all(bytes)?;
                file.flush()?;
            }
            disk.unmount()
        };
        write(&mut image).map_err(Error::io("write the floppy image"))?;
        Ok(image)
    }

    /// Reads a floppy image.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::NotFat`], [`Error::Truncated`], [`Error::Damaged`], [`Error::NoSpec`].
    pub fn from_floppy(image: &[u8]) -> Result<Self, Error> {
        Volume::open(&mut Cursor::new(image))?.bundle()
    }
}

/// FAT's first day, as the time of every file: the image depends on the bundle alone.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// The geometry that every floppy drive and BIOS expects.
fn geometry() -> FormatVolumeOptions {
    FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_sector(512)
        .bytes_per_cluster(512)
        .total_sectors(2880)
        .max_root_dir_entries(224)
        .fats(2)
        .media(0xf0)
        .sectors_per_track(18)
        .heads(2)
        .drive_num(0)
        .volume_label(LABEL_PADDED)
}
