"""The cache as a whole, against models of it, in random and in all orders."""
