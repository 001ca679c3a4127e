use std::fmt;
use std::str::FromStr;

/// The secret that a PF's holder shares with those who may open its VFs: a UUID.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 16]);

impl Token {
    /// As the kernel takes it: the bytes in the order of the text.
    pub(crate) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// As the kernel parses it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }
}

/// Shows that there is one, not which.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The text is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A VF token is a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12")]
pub struct TokenSyntax;

impl FromStr for Token {
    type Err = TokenSyntax;

    fn from_str(text: &str) -> Result<Self, TokenSyntax> {
        let groups: Vec<&str> = text.split('-').take(6).collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        if lengths != [8, 4, 4, 4, 12] || !text.is_ascii() {
            return Err(TokenSyntax);
        }
        let digits = groups.concat();
        let mut token = [0; 16];
        for (byte, pair) in token.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| TokenSyntax)?;
            // A sign is a digit to from_str_radix.
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(TokenSyntax);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| TokenSyntax)?;
        }
        Ok(Self(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_keeps_the_order_of_its_bytes_and_is_not_shown() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let token: Token = text.parse().unwrap();
        assert_eq!(token.bytes()[..6], [0x00, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert_eq!(token.text(), text);
        assert_eq!(format!("{token:?}"), "Token");
        assert_eq!(text.to_uppercase().parse(), Ok(token));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "0011223344556677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeefg",
            "+0112233-4455-6677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeeff-",
            "é0112233-4455-6677-8899-aabbccddeef",
        ] {
            assert_eq!(text.parse::<Token>(), Err(TokenSyntax), "{text}");
        }
    }
}
