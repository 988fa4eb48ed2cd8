//! The trust|me GuestOS bundle: configuration text, signature, images and dm-verity trees, store on disk.
