"""What stages need in memory, measured, beside what `inverse-alignment plan --memory` says of them."""
