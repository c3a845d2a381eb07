"""headlens: what attention heads do, why they attend where they do, and what can be read from them."""
