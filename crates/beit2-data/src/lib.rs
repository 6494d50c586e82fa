//! beit2-data
