# source <(ringward completion bash), in zsh: source <(ringward completion zsh)
_ringward() {
  local typed="" word next="" line value=""
  for word in "${COMP_WORDS[@]:1:$((COMP_CWORD - 1))}"; do
    if [[ $value ]]; then
      value=""
      continue
    fi
    case ${word/#--/-} in
      -json | -yes | -password-stdin | -h | -help | -*=*) ;;
      -*) value=next ;; # comes after the flag
      *) typed+="$word " ;;
    esac
  done
  while IFS= read -r line; do
    [[ $line = "$typed"* ]] && line=${line#"$typed"} && next+="${line%% *} "
  done <<'END'
COMMANDS
END
  [[ $value ]] || COMPREPLY=($(compgen -W "$next" -- "$2"))
}
complete -o default -F _ringward ringward
