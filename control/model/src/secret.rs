//! Text that must not be seen.

use std::fmt;
use std::ops::Deref;

use zeroize::Zeroizing;

/// A key or the secret part of a token. Never printed; overwritten in memory when it is dropped.
///
/// What is made from it is not: the bytes of a message on its way to the log or a TLS connection are
/// freed as they are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    /// Leaves the text out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_not_printed() {
        let secret = Secret::from("precious".to_owned());
        assert_eq!(&*secret, "precious");
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret))
                .matches("precious")
                .count(),
            0
        );
    }
}
