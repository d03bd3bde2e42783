"""Models on many machines: giving them away, sharing what is built, and machines that are lost."""
