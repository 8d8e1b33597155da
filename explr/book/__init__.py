"""What the chapters are drawn with: figures, figures that move, and the ledger of claims."""
