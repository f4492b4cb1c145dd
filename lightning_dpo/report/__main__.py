from lightning_dpo.report import main

if __name__ == "__main__":
    main()
