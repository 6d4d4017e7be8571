"""AP of every unit, the units that detect a concept best, and what languages share."""
