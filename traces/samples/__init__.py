"""The bundled sample trace, and the fitted laws it was generated from."""
