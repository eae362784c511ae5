"""What several rule files share; none of these files holds a rule."""
