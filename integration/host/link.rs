//! What only the linker can be told, and Cargo.toml cannot say.

fn main() {
    println!("cargo::rerun-if-changed=integration/host/link.rs");
    // Packed, outcalld's relative relocations take 7 KB, not 640. Needs glibc 2.36, that of Debian 12, to run: the package
    // says so (debian/control), since no symbol tells it to dpkg-shlibdeps.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
