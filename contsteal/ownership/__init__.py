"""What an owner can prove afterwards: dataset inference, watermarks, and how thieves hide."""
