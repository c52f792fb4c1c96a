//! Lines for diagnosis, through aya-log. Built with the feature `log` only; without it they are nothing.

/// One line about what a program decided.
#[cfg(feature = "log")]
macro_rules! note {
    ($ctx:expr, $($argument:tt)*) => { aya_log_ebpf::debug!($ctx, $($argument)*) };
}

/// Takes no time without the feature.
#[cfg(not(feature = "log"))]
macro_rules! note {
    ($ctx:expr, $format:literal $(, $argument:expr)*) => {{ let _ = (&$ctx, $(&$argument),*); }};
}

pub(crate) use note;
