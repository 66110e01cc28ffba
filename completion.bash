# source <(ringward completion bash), in zsh: source <(ringward completion zsh)
_ringward() {
  local typed=() word next line
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ $word = -* ]] || typed+=("$word")
  done
  next=()
  while IFS= read -r line; do
    if [[ ${#typed[@]} = 0 ]]; then
      next+=("${line%% *}")
    elif [[ $line = "${typed[*]} "* ]]; then
      line=${line#"${typed[*]} "}
      next+=("${line%% *}")
    fi
  done <<'END'
COMMANDS
END
  COMPREPLY=($(compgen -W "${next[*]}" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _ringward ringward
