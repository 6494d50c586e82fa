//! beit2-run
