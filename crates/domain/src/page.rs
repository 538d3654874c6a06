//! Lists in pages.

use crate::FieldErrors;

/// Which part of a list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    page: u32,
    per_page: u32,
}

impl PageRequest {
    /// How many items a page has when nothing else is asked for.
    pub const DEFAULT_PER_PAGE: u32 = 20;
    /// The most items that a page can have.
    pub const MAX_PER_PAGE: u32 = 100;

    /// The page `page` (from 1) of `per_page` (1 to 100) items; absent values mean the first page of 20.
    pub fn parse(page: Option<i64>, per_page: Option<i64>, errors: &mut FieldErrors) -> Self {
        let mut bounded = |name, value: Option<i64>, default, max, problem| match value.map(u32::try_from) {
            None => default,
            Some(Ok(value)) if (1..=max).contains(&value) => value,
            Some(_) => {
                errors.add(name, problem);
                default
            }
        };
        Self {
            page: bounded("page", page, 1, u32::MAX, "must be a whole number from 1"),
            per_page: bounded("per_page", per_page, Self::DEFAULT_PER_PAGE, Self::MAX_PER_PAGE, "must be a whole number from 1 to 100"),
        }
    }

    /// The first page of `per_page` items, or of [`PageRequest::MAX_PER_PAGE`] when that is less.
    #[must_use]
    pub const fn first(per_page: u32) -> Self {
        Self { page: 1, per_page: if per_page < Self::MAX_PER_PAGE { per_page } else { Self::MAX_PER_PAGE } }
    }

    /// The page's number, from 1.
    #[must_use]
    pub const fn page(self) -> u32 {
        self.page
    }

    /// How many items the page has at most.
    #[must_use]
    pub const fn per_page(self) -> u32 {
        self.per_page
    }

    /// How many items stand before the page.
    #[must_use]
    pub fn offset(self) -> i64 {
        (i64::from(self.page) - 1) * i64::from(self.per_page)
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { page: 1, per_page: Self::DEFAULT_PER_PAGE }
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What was found on the page.
    pub items: Vec<T>,
    /// What was asked for.
    pub request: PageRequest,
    /// How many items the whole list has.
    pub total: u64,
}

impl<T> Page<T> {
    /// How many pages the whole list has; none when it is empty.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.total.div_ceil(u64::from(self.request.per_page))
    }

    /// The same page of other items.
    pub fn map<U>(self, each: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(each).collect(), request: self.request, total: self.total }
    }
}
