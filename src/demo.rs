//! A split of the retail monolith to look at: clusters of its own, live traffic, and the words an operator types.

mod shop;
pub mod traffic;

/// Tables, types and roles of the retail monolith that `plans/retail.yaml` splits.
pub const RETAIL_SCHEMA_SQL: &str = include_str!("../plans/retail.sql");

/// Its rows, about 330,000. Needs a superuser.
pub const RETAIL_DATA_SQL: &str = include_str!("../plans/retail_data.sql");

/// The plan that splits it.
pub const RETAIL_PLAN: &str = include_str!("../plans/retail.yaml");
