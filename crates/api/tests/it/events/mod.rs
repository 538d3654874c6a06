//! Events as clients see them.

mod demo;
