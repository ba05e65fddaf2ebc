//! Why one side ends a connection: the application codes of the protocol.

use std::fmt;

macro_rules! close_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $code:literal, $words:literal;)*) => {
        /// Why a connection was ended on purpose. Append-only: the numbers are part of the wire format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CloseCode {
            $($(#[$doc])* $variant,)*
            /// A number that this build does not know.
            Unknown(u32),
        }

        impl CloseCode {
            /// The number on the wire.
            pub const fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* Self::Unknown(number) => number }
            }

            /// The code with this number.
            pub const fn from_number(number: u32) -> Self {
                match number { $($number => Self::$variant,)* other => Self::Unknown(other) }
            }

            /// Short stable name.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* Self::Unknown(_) => "closed" }
            }

            /// What happened, for a person at the other side.
            pub const fn words(self) -> &'static str {
                match self { $(Self::$variant => $words,)* Self::Unknown(_) => "the connection was closed" }
            }
        }
    };
}

close_codes! {
    /// All is said.
    Done = 0, "done", "the connection was closed as agreed";
    /// The protocol needs a client certificate and there was none.
    NoCertificate = 1, "no-certificate", "the coordinator requires a site certificate and none was shown";
    /// The client certificate does not say which site it is of.
    BadIdentity = 2, "bad-identity", "the site certificate does not name a site as this protocol expects";
    /// The peer broke the protocol.
    ProtocolViolation = 3, "protocol-violation", "the other side did not understand what it was sent";
    /// Too many connections for now.
    TooBusy = 4, "too-busy", "the coordinator has too many connections for now";
    /// The process is stopping.
    Stopping = 5, "stopping", "the other side is stopping";
    /// The same site connected anew.
    Replaced = 6, "replaced", "the same site connected anew";
    /// The site was revoked.
    Revoked = 7, "site-revoked", "the coordinator has revoked this site";
    /// The site's certificate expired while it was connected.
    CertificateExpired = 8, "certificate-expired", "the site certificate has expired";
    /// The peer was too slow.
    TooSlow = 9, "too-slow", "the other side waited too long";
    /// The certificate's site is not one of this consortium.
    UnknownSite = 10, "unknown-site", "the coordinator does not know this site";
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}
