//! Pagination.

use crate::FieldErrors;

/// A request for one page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    page: u32,
    per_page: u32,
}

impl PageRequest {
    /// The default page size.
    pub const DEFAULT_PER_PAGE: u32 = 20;
    /// The maximum page size.
    pub const MAX_PER_PAGE: u32 = 100;

    /// Parses the page number (from 1) and size (1 to 100). The defaults are the first page and 20 items.
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

    /// The first page, of `per_page` items or [`PageRequest::MAX_PER_PAGE`], whichever is less.
    #[must_use]
    pub const fn first(per_page: u32) -> Self {
        Self { page: 1, per_page: if per_page < Self::MAX_PER_PAGE { per_page } else { Self::MAX_PER_PAGE } }
    }

    /// The page number, from 1.
    #[must_use]
    pub const fn page(self) -> u32 {
        self.page
    }

    /// The page size.
    #[must_use]
    pub const fn per_page(self) -> u32 {
        self.per_page
    }

    /// The number of items before the page.
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

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items on the page.
    pub items: Vec<T>,
    /// The request for the page.
    pub request: PageRequest,
    /// The number of items in the whole list.
    pub total: u64,
}

impl<T> Page<T> {
    /// The number of pages in the whole list; 0 if it is empty.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.total.div_ceil(u64::from(self.request.per_page))
    }

    /// Converts the items of the page.
    pub fn map<U>(self, each: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(each).collect(), request: self.request, total: self.total }
    }
}
