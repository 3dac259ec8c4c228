//! Guests of 512 bytes, that need no image but themselves.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::conformance::Program;

/// Where the firmware puts the sector.
const ORIGIN: u16 = 0x7c00;
/// Where the guest keeps its count: in memory, so that a memory that is lost is seen.
const COUNT: [u8; 2] = [0x00, 0x7e];
/// How long it waits between two numbers, in turns of a loop: some milliseconds under emulation.
const TURNS: u32 = 0x10_0000;

/// What a guest that fills its memory writes, in each page: almost all of 192 MiB.
pub(super) const FILLED: Range<u32> = 1 << 20..190 << 20;

/// Puts instructions one after the other, and fills in how far labels are.
#[derive(Default)]
struct Assembler {
    bytes: Vec<u8>,
    labels: BTreeMap<&'static str, usize>,
    near: Vec<(usize, &'static str)>,
    short: Vec<(usize, &'static str)>,
    absolute: Vec<(usize, &'static str)>,
}

impl Assembler {
    fn code(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn label(&mut self, name: &'static str) -> &mut Self {
        self.labels.insert(name, self.bytes.len());
        self
    }

    /// `call label`
    fn call(&mut self, name: &'static str) -> &mut Self {
        self.code(&[0xe8]);
        self.near.push((self.bytes.len(), name));
        self.code(&[0, 0])
    }

    /// A jump of one byte's distance.
    fn jump(&mut self, code: u8, name: &'static str) -> &mut Self {
        self.code(&[code]);
        self.short.push((self.bytes.len(), name));
        self.code(&[0])
    }

    /// `mov si, label`
    fn source(&mut self, name: &'static str) -> &mut Self {
        self.code(&[0xbe]).address(name)
    }

    /// A label's address.
    fn address(&mut self, name: &'static str) -> &mut Self {
        self.absolute.push((self.bytes.len(), name));
        self.code(&[0, 0])
    }

    fn sector(mut self) -> Vec<u8> {
        for (at, name) in &self.near {
            let distance = self.labels[name] as i64 - (*at as i64 + 2);
            self.bytes[*at..at + 2].copy_from_slice(&i16::try_from(distance).unwrap().to_le_bytes());
        }
        for (at, name) in &self.short {
            let distance = self.labels[name] as i64 - (*at as i64 + 1);
            self.bytes[*at] = i8::try_from(distance).unwrap().cast_unsigned();
        }
        for (at, name) in &self.absolute {
            let address = ORIGIN + u16::try_from(self.labels[name]).unwrap();
            self.bytes[*at..at + 2].copy_from_slice(&address.to_le_bytes());
        }
        assert!(self.bytes.len() <= 510);
        self.bytes.resize(510, 0);
        self.bytes.extend([0x55, 0xaa]);
        self.bytes
    }
}

/// The boot sector of a guest that does this.
pub(super) fn boot_sector(program: Program) -> Vec<u8> {
    const CALLS: u8 = 0xe2; // loop
    const JMP: u8 = 0xeb;
    const JZ: u8 = 0x74;
    const JNZ: u8 = 0x75;
    let [low, high] = COUNT;
    let mut a = Assembler::default();
    a.code(&[0xfa]) // cli
        .code(&[0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0]) // xor ax, ax; mov ds, ax; mov ss, ax
        .code(&[0xbc, 0x00, 0x7c]) // mov sp, 7c00h
        .code(&[0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef]) // mov dx, 602h; mov ax, 100h; out dx, ax: the power button counts
        .code(&[0x66, 0xc7, 0x06, low, high, 0, 0, 0, 0]); // mov dword [COUNT], 0
    if program == Program::Loops {
        // An interrupt without a table of them, and none for that fault nor for the next: lidt [descriptors]; int3.
        a.code(&[0x0f, 0x01, 0x1e]).address("descriptors").code(&[0xcc]);
    }
    if program == Program::Fills {
        // A data segment of 4 GiB, and back: lgdt [table]; mov eax, cr0; inc ax; mov cr0, eax; mov bx, 8; mov es, bx;
        // dec ax; mov cr0, eax.
        a.code(&[0x0f, 0x01, 0x16])
            .address("table")
            .code(&[
                0x0f, 0x20, 0xc0, 0x40, 0x0f, 0x22, 0xc0, 0xbb, 0x08, 0x00, 0x8e, 0xc3,
            ])
            .code(&[0x48, 0x0f, 0x22, 0xc0])
            .code(&[0x66, 0xbf])
            .code(&FILLED.start.to_le_bytes()) // mov edi, start
            .label("fill")
            .code(&[0x26, 0x67, 0x66, 0x89, 0x3f]) // mov es:[edi], edi
            .code(&[0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00]) // add edi, 4096
            .code(&[0x66, 0x81, 0xff])
            .code(&FILLED.end.to_le_bytes()) // cmp edi, end
            .jump(0x72, "fill"); // jb
    }
    a.label("count");
    if program == Program::Writes {
        // xor ax, ax; mov es, ax; mov ax, 301h; mov bx, 7c00h; mov cx, 1; mov dx, 880h; int 13h: the first sector under
        // the ninth head, which is the 505th of the disk.
        a.code(&[
            0x31, 0xc0, 0x8e, 0xc0, 0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x01, 0x00, 0xba, 0x80, 0x08,
            0xcd, 0x13,
        ]);
    }
    a.code(&[0x66, 0xff, 0x06, low, high]) // inc dword [COUNT]
        .source("text")
        .label("text loop")
        .code(&[0xac, 0x84, 0xc0]) // lodsb; test al, al
        .jump(JZ, "number")
        .call("put")
        .jump(JMP, "text loop")
        .label("number")
        .code(&[0x66, 0x8b, 0x1e, low, high]) // mov ebx, [COUNT]
        .code(&[0xb9, 0x08, 0x00]) // mov cx, 8
        .label("digit")
        .code(&[0x66, 0xc1, 0xc3, 0x04, 0x88, 0xd8, 0x24, 0x0f]) // rol ebx, 4; mov al, bl; and al, 15
        .code(&[0x3c, 0x0a, 0x72, 0x02, 0x04, 0x27, 0x04, 0x30]) // cmp al, 10; jb $+4; add al, 27h; add al, '0'
        .call("put")
        .jump(CALLS, "digit")
        .code(&[0xb0, b'\r'])
        .call("put")
        .code(&[0xb0, b'\n'])
        .call("put")
        .code(&[0x66, 0xb9])
        .code(&TURNS.to_le_bytes()) // mov ecx, TURNS
        .label("wait")
        .code(&[0x66, 0x49]) // dec ecx
        .jump(JNZ, "wait");
    match program {
        // jmp count
        Program::Deaf | Program::Writes | Program::Loops => a.jump(JMP, "count"),
        Program::Counts | Program::Fills => a
            .code(&[0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01]) // mov dx, 600h; in ax, dx; test ah, 1
            .jump(JZ, "count"),
        Program::SwitchesOff | Program::Panics | Program::Resets => a
            .code(&[0x80, 0x3e, low, high, 0x03]) // cmp byte [COUNT], 3
            .jump(JNZ, "count"),
    };
    match program {
        Program::Panics => a.code(&[0xba, 0x05, 0x05, 0xb0, 0x01, 0xee]), // mov dx, 505h; mov al, 1; out dx, al
        Program::Resets => a.code(&[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee]), // mov dx, 0cf9h; mov al, 6; out dx, al
        _ => a.code(&[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef]), // mov dx, 604h; mov ax, 2000h; out dx, ax
    }
    .label("end")
    .code(&[0xf4]) // hlt
    .jump(JMP, "end")
    .label("put")
    .code(&[0x50, 0xba, 0xfd, 0x03]) // push ax; mov dx, 3fdh
    .code(&[0xec, 0xa8, 0x20, 0x74, 0xfb, 0x58]) // in al, dx; test al, 20h; jz $-3; pop ax
    .code(&[0xba, 0xf8, 0x03, 0xee, 0xc3]) // mov dx, 3f8h; out dx, al; ret
    .label("text")
    .code(b"count \0")
    .label("table")
    .code(&[0x0f, 0x00])
    .address("descriptors")
    .code(&[0, 0])
    .label("descriptors")
    .code(&[0; 8])
    .code(&[0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0]);
    a.sector()
}
