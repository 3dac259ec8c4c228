//! What the processor does by itself.

#[cfg(target_arch = "x86_64")]
/// Whether it does AES-GCM.
pub(crate) fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
/// Whether it does AES-GCM.
pub(crate) fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
/// Whether it does AES-GCM.
pub(crate) fn has_aes() -> bool {
    false
}
