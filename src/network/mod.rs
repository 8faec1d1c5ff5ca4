//! Subnets and bridge names of managed networks: pure functions.
