//! beit2
